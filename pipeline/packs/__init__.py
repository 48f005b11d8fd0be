"""How triplets become packs: batches of rows with many triplets over them, a record each.

packs    what shapes packs; packs that are not written yet
fill     corpus triplets that share a pack, and the rows that fill it up
spread   packs that are spread over the corpus, without a scan
payload  what a pack carries of its rows
write    packs to TFRecords
"""
