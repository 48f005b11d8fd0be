"""Pages to look at, and tables of what is on disk.

results     what training and evaluation leave for the report
facts       what a run directory says of its rounds
sample      some of a round's triplets
neighbours  what lies nearest to a row
confusion   which classes are confused
suspects    which labels look wrong
views       rows as one sees them: a picture, a text, strokes
charts      where bars and lines lie
templating  how pages are written; templates/
pages       the pages themselves
inspection  what TFRecord files hold, and whether it is what their manifests say
"""
