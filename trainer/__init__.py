"""Training on mined triplets: TensorFlow and Keras; no Beam, but in `rounds`.

init, warmup, train, evaluate   one command each
options    of these commands, which a recipe names too
models     the networks that ship
first      round 0's checkpoint
warming    in-batch training before anything is mined
loop       a round's training from start to checkpoint
step       one training step, on every device there is
losses     on embeddings
batches    triplet TFRecords, and corpus records, to batches
memory     embeddings of the whole corpus that a batch is compared with beside its own
state      what an interrupted training needs to go on
recipe     all settings of the rounds, in a file
rounds     mining and training in turn, by a plan on disk
measures/  how good embeddings are
"""
