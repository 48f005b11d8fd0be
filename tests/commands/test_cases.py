"""Tables and arrays as people have them: what is stored, what is rejected and why, and what is refused in one line."""

import csv
import gzip
import json
import os
import sqlite3
import string
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import png, read_source, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ingest
from pipeline.corpus.corpus import Corpus
from pipeline.corpus.sources.source import Example
from pipeline.errors import InputError

CASES = Path(__file__).parents[1] / "data" / "cases"
STRAY = "a quote opens a cell and does not close it; quote=none"
ALL = ["--validation_share", "0", "--eval_share", "0", "--max_rejected", "0.99"]


def ingested(run_dir, source, *options):
    """The labels with how many rows each, and what was rejected with its reason."""
    assert ingest.main(["--run_dir", str(run_dir), "--source", source, *ALL, *options]) == 0
    corpus = Corpus.open(run_dir)
    split = corpus.split("train")
    rejected = [json.loads(line) for line in (run_dir / "corpus" / "rejected.jsonl").read_text().splitlines()]
    counts = dict(zip(split.labels, np.diff(split.first_rows).tolist(), strict=True))
    return counts, {entry["source"]: entry["reason"] for entry in rejected}


# ---- The files of tests/data/cases. ----


@pytest.mark.parametrize(
    ("source", "labels", "rejected"),
    [
        ("csv:quotes.csv", {"a": 14, "b": 15}, {"quotes.csv: line 6": STRAY}),
        ("csv:quotes.csv,quote=none", {"a": 15, "b": 15}, {}),
        ("csv:quotes.tsv", {"alpha": 3, "beta": 2}, {"quotes.tsv: line 3": STRAY}),
        ("csv:quotes.tsv,quote=none", {"alpha": 3, "beta": 3}, {}),
        ("csv:one-quote.tsv", {"alpha": 1, "beta": 2}, {"one-quote.tsv: line 2": STRAY}),
        ("csv:semicolon.csv", {"alpha": 4, "beta": 4}, {}),
        ("csv:semicolon.csv,sep=;", {"alpha": 4, "beta": 4}, {}),
        ("csv:upper.TSV", {"alpha": 4, "beta": 4}, {}),
        ("csv:sop-index.txt,text=path,label=class_id", {"1": 2, "2": 2}, {}),
        ("csv:gzip.csv.gz", {"alpha": 4, "beta": 4}, {}),
        ("csv:utf16.csv", {"alpha": 4, "beta": 4}, {}),
        ("csv:latin1.csv", {"alpha": 1, "beta": 2}, {"latin1.csv: line 2": "it is not UTF-8; encoding=latin-1"}),
        ("csv:latin1.csv,encoding=latin-1", {"alpha": 2, "beta": 2}, {}),
        ("csv:latin1-header.csv,label=étiquette,encoding=latin-1", {"a": 1, "b": 1}, {}),
        ("csv:[2024] data.csv", {"alpha": 4, "beta": 4}, {}),
        ('csv:comma-in-column-name.csv,label="label,main"', {"alpha": 4, "beta": 4}, {}),
        ("jsonl:texts.jsonl", {"alpha": 4, "beta": 4}, {}),
        ("parquet:hf-classlabel.parquet,image=img,label=fine_label", {"apple": 4, "bear": 4}, {}),
        (
            "parquet:nan-label.parquet", {"0.0": 2, "1.0": 4},
            {"nan-label.parquet:0000002": "it has no label", "nan-label.parquet:0000006": "it has no label"},
        ),
        ("arrays:nan-label.npz", {"0.0": 4, "1.0": 4}, {f"row {n}": "it has no label" for n in (2, 5, 8, 11)}),
        ("arrays:empty-label.npz", {"a": 4, "b": 4}, {f"row {n}": "it has no label" for n in (2, 5, 8, 11)}),
        ("tfds:reviews,data_dir=tfds,split=train", {"neg": 5, "pos": 5}, {}),
    ],
)  # fmt: skip
def test_a_case_is_read(tmp_path, monkeypatch, capsys, source, labels, rejected):
    monkeypatch.chdir(CASES)
    counts, reasons = ingested(tmp_path / "run", source)
    assert counts == labels and reasons.keys() == rejected.keys()
    assert all(reasons[where].startswith(reason) for where, reason in rejected.items())
    rows, bad = sum(labels.values()), len(rejected)
    assert f"{rows + bad} rows read: {rows} stored, {bad} rejected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("csv:latin1-header.csv,label=étiquette", "latin1-header.csv: its first line is not UTF-8.*encoding=latin-1"),
        ("parquet:column-twice.parquet", "column-twice.parquet: 'label' is there 2 times"),
        ("parquet:list-label.parquet", r"its label is a list, \['a', 'b'\], expected one name"),
        ("parquet:struct-label.parquet", "its label is a dict, {'name': 'a'}, expected one name"),
        ("tfds:reviews,data_dir=tfds", "10 examples of 20 are rejected.*it has no label"),
        ("tfds:reviews,data_dir=tfds,split=test", "no split test; there are train, unsupervised"),
        ("csv:comma-in-column-name.csv,label=main", "there is no 'main' for label="),
        ("csv:one-quote.tsv", "1 examples of 4 are rejected.*one-quote.tsv: line 2: .*quote=none"),
    ],
)  # fmt: skip
def test_a_case_is_refused_in_words(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(CASES)
    with pytest.raises(InputError, match=message):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", source])


# ---- More of the same sorts. ----


def told(source):
    """(text, label) of what is read, in order; and what is rejected."""
    found = read_source(source)
    examples = [(e.payload.decode(), e.label) for e in found if isinstance(e, Example)]
    return examples, [str(e) for e in found if not isinstance(e, Example)]


FINE = [("one", "a"), ("two", "b"), ("three", "a")]


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("cr.csv", b"text,label\rone,a\rtwo,b\rthree,a\r", ""),
        ("mixed.csv", b"text,label\r\none,a\ntwo,b\rthree,a\r\n", ""),
        ("begin.csv", b"\n\r\ntext,label\none,a\ntwo,b\nthree,a\n", ""),
        ("start.csv", b"\n\n\ntext,label\none,a\ntwo,b\nthree,a\n", ""),
        ("blank.csv", b"text,label\n\none,a\n\n\ntwo,b\nthree,a", ""),
        ("bom.csv", b"\xef\xbb\xbf\"text\",label\none,a\ntwo,b\nthree,a\n", ",encoding=utf-8"),
        ("tab.csv", b"text\tlabel\none\ta\ntwo\tb\nthree\ta\n", ""),
        ("pipe.txt", b"label|text\na|one\nb|two\na|three\n", ""),
        ("tilde.csv", b"text~label\none~a\ntwo~b\nthree~a\n", ",sep=~"),
        ("single.csv", b"text,label\n'one','a'\n'two','b'\n'three','a'\n", ",quote='"),
        ("unnamed.csv", b"label,text,,,\na,one,,,\nb,two,x,,\na,three,,,\n", ""),
        ("twice.csv", b"note,text,note,label\nx,one,y,a\nx,two,y,b\nx,three,y,a\n", ""),
        ("trailing.csv", b"text,label\none,a,\ntwo,b\nthree,a\n", ""),
        ("a, b=*[1].csv", b"text,label\none,a\ntwo,b\nthree,a\n", ""),
        ("packed.csv", gzip.compress(b"text,label\none,a\ntwo,b\nthree,a\n", mtime=0), ""),
        ("be.csv", "text,label\none,a\ntwo,b\nthree,a\n".encode("utf-16-be"), ",encoding=utf-16-be"),
        ("wide.tsv.gz", gzip.compress("text\tlabel\none\ta\ntwo\tb\nthree\ta\n".encode("utf-16"), mtime=0), ""),
        ("named.csv", b'text,"a ""b"", c"\none,a\ntwo,b\nthree,a\n', ',label="a ""b"", c"'),
    ],
)  # fmt: skip
def test_a_table_is_read_however_it_is_written(tmp_path, name, data, options):
    (tmp_path / name).write_bytes(data)
    assert told(f"csv:{tmp_path / name}{options}") == (FINE, [])


def test_files_of_a_glob_differ_in_the_order_of_columns_and_may_be_empty(tmp_path):
    for name, text in {"0": "", "1": "text,label\none,a\n", "2": "label,x,text\nb,,two\n", "3": "text,label\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    assert told(f"csv:{tmp_path}/*.csv") == (FINE[:2], [])


def test_the_spam_file_of_kaggle(tmp_path):
    """latin-1, and three columns without a name."""
    (tmp_path / "spam.csv").write_bytes('v1,v2,,,\nham,"caf\xe9, 5\xa3",,,\nspam,WINNER!!,,,\n'.encode("latin-1"))
    source = f"csv:{tmp_path / 'spam.csv'},label=v1,text=v2"
    assert told(f"{source},encoding=latin-1") == ([("café, 5£", "ham"), ("WINNER!!", "spam")], [])
    examples, rejected = told(source)
    assert examples == [("WINNER!!", "spam")] and "spam.csv: line 2: it is not UTF-8; encoding=latin-1" in rejected[0]


@pytest.mark.parametrize("closing", ['"', 'b"', ""])
def test_a_stray_quote_costs_its_line_only(tmp_path, closing):
    """A quote near the top that is closed 300 lines later, or never; among rows that need their quotes."""
    rows = [f'"text, {n}",{"ab"[n % 2]}' if n % 3 else f"text {n},{'ab'[n % 2]}" for n in range(400)]
    rows[7] = '"5 inch nails,a'
    for n in range(8, 308):
        rows[n] = f"text {n},a"
    rows[307] = f"nails {closing},a"
    rows[390] = '"two\nlines",b'
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    examples, rejected = told(f"csv:{tmp_path / 't.csv'}")
    assert len(examples) == 399 and ("two\nlines", "b") in examples and ("text 8", "a") in examples
    assert len(rejected) == 1 and rejected[0].startswith(f"t.csv: line 9: {STRAY}")


def test_texts_of_several_lines_stay_whole_where_their_lines_are_no_rows(tmp_path):
    rows = [("Roses are red,\nviolets blue", "poem"), ("a, b\nc, d\n", "list"), ("plain", "poem")]
    write_csv(tmp_path / "t.csv", [("text", "label"), *rows])
    assert told(f"csv:{tmp_path / 't.csv'}") == (rows, [])


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_long_cell_is_kept_in_any_encoding(tmp_path, encoding):
    """csv alone refuses cells of more than 131,072 characters; that limit stays as it was."""
    rows, limit = [("one", "a"), ("x, " * 70_000, "b"), ("three", "a")], csv.field_size_limit()
    write_csv(tmp_path / "t.csv", [("text", "label"), *rows])
    assert told(f"csv:{tmp_path / 't.csv'},encoding={encoding}") == (rows, [])
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("encoding", ["", ",encoding=latin-1"])
@pytest.mark.parametrize("rows", [3, 50_000])
def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path, rows, encoding):
    lines = "".join(f"text {n} {n * n},a\n" for n in range(rows))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(f"text,label\n{lines}".encode())[:-20])
    with pytest.raises(InputError, match="t.csv.gz"):
        told(f"csv:{tmp_path / 't.csv.gz'}{encoding}")


@pytest.mark.parametrize("spoil", [lambda packed: packed[:-200], lambda packed: packed[:30] + b"?" * 60 + packed[90:]])
@pytest.mark.parametrize(
    ("kind", "head", "row"), [("csv", "text,label\n", "{},a\n"), ("jsonl", "", '{{"text": "{}"}}\n')]
)
def test_a_gzip_file_that_is_damaged_at_its_start_is_refused(tmp_path, kind, head, row, spoil):
    rows = map(row.format, np.random.default_rng(0).integers(2**60, size=20))
    (tmp_path / "t.gz").write_bytes(spoil(gzip.compress((head + "".join(rows)).encode())))
    with pytest.raises(InputError, match="t.gz"):
        told(f"{kind}:{tmp_path / 't.gz'}")


@pytest.mark.parametrize("blank", [0, 2])
def test_lines_are_counted_and_not_rows(tmp_path, blank):
    data = b'text,label\r\n"a\r\nb\r\nc",x\r\n\r\nonly\r\none,a\r\n1,2,3\r\n'
    (tmp_path / "t.csv").write_bytes(b"\r\n" * blank + data)
    expected = [f"t.csv: line {blank + line}: {cells} cells, the header has 2" for line, cells in ((6, 1), (8, 3))]
    text = "a\nb\nc" if blank else "a\r\nb\r\nc"  # a file that is written anew has one kind of line ends
    assert told(f"csv:{tmp_path / 't.csv'}") == ([(text, "x"), ("one", "a")], expected)


def test_json_lines(tmp_path):
    lines = [
        '{"text": "one", "label": 1, "extra": {"a": []}}', "", "no json", '{"text": "two", "label": null}', "[1, 2]",
        '{"label": ["x"], "text": "three"}', '{"text": "four", "label": NaN}', '{"text": "fünf", "label": "\\u00e9"}',
    ]  # fmt: skip
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    examples, rejected = told(f"jsonl:{tmp_path / 't.jsonl.gz'}")
    assert examples == [("one", "1"), ("fünf", "é")] and len(rejected) == 5
    assert "t.jsonl.gz:0000004: its label is a list, ['x'], expected one name" in rejected
    broken = [f"t.jsonl.gz:{n:07d}: no JSON object with a value for text or label" for n in (1, 3)]
    assert [reason for reason in rejected if "JSON" in reason] == broken
    (tmp_path / "v.jsonl").write_text('{"a/b": [1, 2.5], "c~": "x"}\n{"c~": "y", "a/b": [3, 4]}\n')
    found = read_source(f"jsonl:{tmp_path / 'v.jsonl'},vector=a/b,label=c~")
    assert [(e.label, e.payload.tolist()) for e in found] == [("x", [1, 2.5]), ("y", [3, 4])]


@pytest.mark.parametrize("name", ["packed.jsonl", "plain.jsonl.gz"])
def test_json_lines_are_unpacked_by_what_they_hold_and_not_by_their_name(tmp_path, name):
    lines = "".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in FINE).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name == "packed.jsonl" else lines)
    assert told(f"jsonl:{tmp_path / name}") == (FINE, [])


@pytest.mark.parametrize("indent", [None, 2])
def test_json_that_is_no_lines_is_refused_and_read_as_the_message_says(tmp_path, monkeypatch, indent):
    rows = [{"text": text, "label": label} for text, label in FINE]
    (tmp_path / "t.json").write_text(json.dumps(rows, indent=indent))
    with pytest.raises(InputError, match="t.json: none of its first 1,000 lines is a JSON object") as refused:
        told(f"jsonl:{tmp_path / 't.json'}")
    (tmp_path / "q.sql").write_text(str(refused.value).partition("a query like ")[2])
    assert told(f"sql:{tmp_path / 'q.sql'}") == (FINE, [])


def test_queries(tmp_path, monkeypatch):
    """Over files, a DuckDB database and an SQLite file, in the order of the query."""
    write_csv(tmp_path / "t.csv", [("text", "label"), *FINE])
    pq.write_table(pa.table({"label": ["a", "b"], "name": ["first", None]}), tmp_path / "names.parquet")
    monkeypatch.chdir(tmp_path)
    join = "SELECT t.text AS body, n.name FROM 't.csv' t JOIN 'names.parquet' n USING (label) ORDER BY body;"
    Path("join.sql").write_text(f"-- two files\n{join}\n")
    examples, rejected = told("sql:join.sql,text=body,label=name")
    assert examples == [("one", "first"), ("three", "first")] and rejected == ["join.sql:0000002: it has no label"]
    Path("all.sql").write_text("SELECT text, label FROM t ORDER BY text DESC")
    with duckdb.connect("d.db") as connection:
        connection.execute("CREATE TABLE t AS SELECT * FROM 't.csv'")
    with sqlite3.connect("s.db") as connection:
        connection.execute("CREATE TABLE t (text, label)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [*FINE, ("none", None), (b"four", 4)])
    assert told("sql:all.sql,db=d.db") == (sorted(FINE, reverse=True), [])
    in_order = [("four", "4"), *sorted(FINE, reverse=True)]  # SQLite puts bytes after texts
    assert told("sql:all.sql,db=s.db") == (in_order, ["all.sql:0000004: it has no label"])
    Path("sum.sql").write_text("SELECT text, sum(2::HUGEINT) AS label FROM t GROUP BY text ORDER BY text")
    assert told("sql:sum.sql,db=d.db") == ([(text, "2") for text, _ in sorted(FINE)], [])
    Path("wrong.sql").write_text("DELETE FROM t")
    for db in ("d.db", "s.db"):
        with pytest.raises(InputError, match="wrong.sql must hold one SELECT"):
            told(f"sql:wrong.sql,db={db}")


def test_what_stands_for_no_label_and_no_group(tmp_path):
    times = pa.array([None, 0, 1, 1], pa.timestamp("s"))
    table = pa.table({"text": list("abcd"), "label": times, "group": ["", None, "g", " "]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_source(f"parquet:{tmp_path / 't.parquet'}")
    assert str(found[0]) == "t.parquet:0000000: it has no label"
    assert [example.group for example in found[1:]] == [None, "g", None]
    days = np.array(["NaT", "2024-01-01", "2024-01-01"], "datetime64[D]")
    np.savez(tmp_path / "t.npz", vectors=np.eye(3), labels=days, groups=np.array([b"", b"g", b""]))
    found = read_source(f"arrays:{tmp_path / 't.npz'}")
    assert str(found[0]) == "row 0: it has no label"
    assert [(example.label, example.group) for example in found[1:]] == [("2024-01-01", "g"), ("2024-01-01", None)]


def test_hugging_faces_minus_one_is_no_label(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    noted = {"info": {"features": features}}
    table = pa.table({"text": ["one", "two", "three"], "label": [1, -1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(noted)}), tmp_path / "t.parquet")
    expected = [("one", "dog"), ("three", "cat")], ["t.parquet:0000001: it has no label"]
    assert told(f"parquet:{tmp_path / 't.parquet'}") == expected


def test_labels_that_look_alike_are_kept_and_said(tmp_path, capsys):
    labels = ["Cat", "cat", "caf\u00e9", "cafe\u0301", "0", "0.0", "ice cream", "Ice  cream", "dog", "10"]
    write_csv(tmp_path / "t.csv", [("text", "label"), *((f"text {n}", label) for n, label in enumerate(labels))])
    counts, _ = ingested(tmp_path / "run", f"csv:{tmp_path / 't.csv'}")
    assert counts == dict.fromkeys(sorted(labels, key=str.encode), 1)
    out = capsys.readouterr().out
    assert "4 times labels differ only in case, spaces or form. Kept apart: '0', '0.0'; 'Cat', 'cat'; 'Ice" in out


def test_a_corpus_of_one_class_is_told_that_nothing_can_be_mined(tmp_path, capsys):
    write_csv(tmp_path / "t.csv", [("text", "label"), ("one", "a"), ("two", "a")])
    assert ingested(tmp_path / "run", f"csv:{tmp_path / 't.csv'}")[0] == {"a": 2}
    assert "train has one class: no row is a negative of another" in capsys.readouterr().out


def test_a_long_text_is_rejected_unless_one_says_so(tmp_path):
    write_csv(tmp_path / "t.csv", [("id", "text", "label"), ("x", "é" * 100_001, "a"), ("y", "é" * 100_000, "a")])
    counts, rejected = ingested(tmp_path / "run", f"csv:{tmp_path / 't.csv'}")
    assert counts == {"a": 1} and rejected == {"x": "the text has 100,001 characters, --max_text is 100,000"}
    assert ingested(tmp_path / "more", f"csv:{tmp_path / 't.csv'}", "--max_text", "200000") == ({"a": 2}, {})


def test_paths_lead_to_regular_files_inside_the_folder(tmp_path):
    table = tmp_path / "table"
    table.mkdir()
    (table / "in.png").write_bytes(png(1))
    (tmp_path / "out.png").write_bytes(png(2))
    os.symlink("../out.png", table / "link.png")
    os.mkfifo(table / "pipe.png")
    paths = ["in.png", "../out.png", "link.png", "pipe.png", str(tmp_path / "out.png"), "/dev/zero", "."]
    write_csv(table / "t.csv", [("path", "label"), *((path, "a") for path in paths)])
    kept, *rejected = read_source(f"csv:{table / 't.csv'}")
    assert kept.payload == png(1) and len(rejected) == 6
    assert sum("lies outside of" in entry.reason and "inside=DIR" in entry.reason for entry in rejected) == 4
    assert sum("is no regular file" in entry.reason for entry in rejected) == 2
    found = read_source(f"csv:{table / 't.csv'},inside={tmp_path}")
    assert [example.payload for example in found if isinstance(example, Example)] == [png(1), *[png(2)] * 3]


# ---- Rows in are rows stored and rows rejected. ----

CELL = st.text(string.ascii_letters + " \u00e9\u2028'", min_size=1).map(str.strip).filter(bool)
LINES = {  # a line, and whether it is a row
    "plain": (lambda text: f"{text},a".encode(), True),
    "quoted": (lambda text: f'"{text}, ""so"" it\nis",b'.encode(), True),
    "inches": (lambda text: f'{text} 5" pipe,a'.encode(), True),
    "short": (lambda text: text.encode(), False),
    "long": (lambda text: f"{text},a,b".encode(), False),
    "stray": (lambda text: f'"{text} left open,a'.encode(), False),
    "inside": (lambda text: f'"{text}" said,b'.encode(), False),
    "latin-1": (lambda text: f"{text} \xe9,a".encode("latin-1", "replace"), False),
    "unlabelled": (lambda text: f"{text},".encode(), False),
    "blank": (lambda text: b"", None),
}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(LINES)), CELL), min_size=1, max_size=30),
    st.sampled_from([b"\n", b"\r\n"]), st.booleans(),
)  # fmt: skip
def test_rows_in_are_rows_stored_and_rows_rejected(tmp_path_factory, lines, end, zipped):
    known = [("plain", "first"), ("plain", "second")]
    written = [(LINES[kind][0](text), LINES[kind][1]) for kind, text in [*known, *lines]]
    data = end.join([b"text,label", *(line.replace(b"\n", end) for line, _ in written)]) + end
    path = tmp_path_factory.mktemp("rows") / "t.csv"
    path.write_bytes(gzip.compress(data) if zipped else data)
    found = read_source(f"csv:{path}")
    stored = [example for example in found if isinstance(example, Example)]
    assert len(stored) == sum(is_row is True for _, is_row in written)
    assert len(found) - len(stored) == sum(is_row is False for _, is_row in written)
    assert len({example.id for example in stored}) == len(stored)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=12).map(lambda line: line.translate(None, b"\r\n\0")), max_size=20))
def test_without_quotes_every_line_is_a_row_or_rejected(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "t.csv"
    path.write_bytes(b"\n".join([b"text,label", b"one,a", *lines]))
    assert len(read_source(f"csv:{path},quote=none")) == 1 + sum(map(bool, lines))
