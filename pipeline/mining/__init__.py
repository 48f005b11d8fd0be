"""Mining a round: the Beam graph and what it leaves on disk.

options   which triplets are selected
manifest  triplets.json, and reading packs back
mined     what mining came to, in words
job       one round's mining, from start to manifest
of_corpus the same from Python: `mine_corpus`
export    triplets as one file for others
work      what workers are told: the job, and its items
graph     the flow of data: EmbedCorpus, SelectTriplets or SpreadRows, WritePacks
steps     what happens to one element
"""
