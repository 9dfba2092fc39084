"""A folder of documents as people have them: many formats, two languages, copies, broken files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

INSTALL = """# Kestrel guide

Kestrel is a small database that was written in Bergen.

## Install

Run `kestrel install`. The default port of Kestrel is 7433.

```sh
# this is no heading
kestrel install --port 7433
```

Upgrade
-------

Stop Kestrel first. Then run `kestrel upgrade`, which keeps the journal.
"""
GERMAN = """# Handbuch

Kestrel heißt eine kleine Datenbank aus Bergen.

## Sicherung

Die Sicherung läuft jede Nacht. Der Verwalter der Sicherung heißt Jörg Müller.
"""
PAGE = """<html><head><title>Kestrel - team</title><script>var hidden = 1;</script></head>
<body><nav>Home | Team</nav><h1>The team</h1><p>The founder of Kestrel is <b>Ingrid Solberg</b>.</p>
<h2>Offices</h2><table><tr><th>City</th><th>Desks</th></tr><tr><td>Bergen</td><td>12</td></tr>
</table></body></html>
"""
MANUAL = """======
Manual
======

How Kestrel is run.

Journal
-------

The journal of Kestrel is kept for nine days.
"""
CODE = '''"""A client."""

import socket


def connect(port=7433):
    """Open a connection to Kestrel."""
    return socket.create_connection(("localhost", port))


class Client:
    """Speaks with Kestrel."""
'''


def pdf(*pages: str, bookmarks: tuple[tuple[str, int], ...] = ()) -> bytes:
    """Return a PDF file with a line of text for each page, written by hand."""
    parts: list[bytes] = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("latin-1")
        parts.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn))
        box = b"/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
        parts.append(b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R >>" % (box, len(parts)))
        kids.append(b"%d 0 R" % len(parts))
    parts[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    outline = b""
    if bookmarks:
        root = len(parts) + 1
        outline = b"/Outlines %d 0 R" % root
        own = range(root + 1, root + 1 + len(bookmarks))
        parts.append(b"<< /First %d 0 R /Last %d 0 R >>" % (own[0], own[-1]))
        for number, (title, page) in zip(own, bookmarks, strict=True):
            follows = b"/Next %d 0 R" % (number + 1) if number + 1 in own else b""
            place = b"[%s /Fit]" % kids[page]
            name = title.encode("latin-1")
            parts.append(
                b"<< /Title (%s) /Parent %d 0 R /Dest %s %s >>" % (name, root, place, follows)
            )
    parts[0] = b"<< /Type /Catalog /Pages 2 0 R %s >>" % outline
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, io.SEEK_END)
    for number, part in enumerate(parts, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, part))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(parts) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer << /Size %d /Root 1 0 R >>\n" % (len(parts) + 1))
    out.write(b"startxref\n%d\n%%%%EOF\n" % table)
    return out.getvalue()


def bomb(size: int) -> bytes:
    """Return a Word file that unpacks to ``size`` bytes of nothing."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", b"\0" * size)
    return held.getvalue()


def write_plain(folder: Path) -> Path:
    """Write documents that need no package, with what else lies in such folders; return it."""
    for path, text in {
        "guide.md": INSTALL,
        "copy/guide-old.md": INSTALL.replace("7433", "7430"),
        "copy/handbuch.txt": GERMAN,
        "handbuch.md": GERMAN,
        "manual.rst": MANUAL,
        "client.py": CODE,
        "README": "Read the guide first.\n",
        ".git/config": "secret",
        ".hidden.md": "# Hidden",
        "node_modules/x/readme.md": "# Not ours",
        "photo.jpg": "no photo",
        "table.bin": "nothing",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    (folder / "legacy.txt").write_bytes("Größe: 12 Körbe".encode("cp1252"))
    (folder / "broken.txt").write_bytes(b"\x00\x01\x02 binary")
    (folder / "bytes.txt").write_bytes(b"caf\x81\xe9 \x8d")
    (folder / "blank.md").write_text("\n \n")
    (folder / "heads.md").write_text("# Only\n\n## Headings\n")
    (folder / "link.md").symlink_to("guide.md")
    return folder


def write_rich(folder: Path) -> Path:
    """Write documents that need the extra ``documents``, sound ones and broken ones; return it."""
    from docx import Document

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "team.html").write_text(PAGE, encoding="utf-8")
    pages = ("Ports of Kestrel are open.", "Prices of Kestrel begin at 9 crowns.")
    bookmarks = (("Ports", 0), ("Prices", 1))
    (folder / "fees.pdf").write_bytes(pdf(*pages, bookmarks=bookmarks))
    document = Document()
    document.add_heading("Minutes", 0)
    document.add_heading("Decisions", 1)
    document.add_paragraph("The next release of Kestrel is called Osprey.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Chair", "Ingrid Solberg"
    document.save(str(folder / "minutes.docx"))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (folder / "empty.pdf").write_bytes(pdf(""))
    (folder / "bomb.docx").write_bytes(bomb(300_000_000))
    (folder / "torn.docx").write_bytes((folder / "minutes.docx").read_bytes()[:900])
    (folder / "deep.html").write_text("<div>" * 1_500 + "deep" + "</div>" * 1_500)
    return folder
