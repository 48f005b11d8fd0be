"""How rows become embeddings.

network   a checkpoint: loading it, its digest, what it takes and gives
fitting   anybody's Keras model as such a network
decoding  payloads to what a network takes
embedder  records in, embeddings out: the forward pass of mining, training and evaluation
machine   what it runs on, and the kind of machine, which decides an embedding's last digits
export    embeddings of whole splits as one file for others
store     the embeddings of a round on disk, and rows with all that selection wants to know of them
"""
