"""Mining a round: the Beam graph and what it leaves on disk.

options   which triplets are selected
manifest  triplets.json, and reading packs back
job       options, and one round's mining from start to manifest
graph     the flow of data: EmbedCorpus, SelectTriplets or SpreadRows, WritePacks
steps     what happens to one element
"""
