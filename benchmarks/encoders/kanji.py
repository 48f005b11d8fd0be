"""Kanji of JIS X 0208 in fonts that Debian packages, as an .npz for the source `arrays`.

Each font draws a character once, in black on white, turned by up to 8 degrees, shifted, scaled and with noise. `make
runs/fonts` fetches the fonts; `FAMILIES` says which file each package is taken for.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FAMILIES = {
    "fonts-aoyagi-kouzan-t": ["AoyagiKouzanT.ttf"],
    "fonts-aoyagi-soseki": ["aoyagi-soseki.ttf"],
    "fonts-arphic-ukai": ["ukai.ttc"],
    "fonts-arphic-uming": ["uming.ttc"],
    "fonts-cns11643-kai": ["TW-Kai-98_1.ttf"],
    "fonts-dotgothic16": ["DotGothic16-Regular.ttf"],
    "fonts-hanazono": ["HanaMinA.ttf"],
    "fonts-ipafont-mincho": ["ipam.ttf"],
    "fonts-kiloji": ["kiloji.ttf"],
    "fonts-klee": ["KleeOne-Regular.ttf"],
    "fonts-kouzan-mouhitsu": ["kouzan-mouhitsu.ttf"],
    "fonts-lxgw-wenkai": ["LXGWWenKai-Regular.ttf"],
    "fonts-motoya-l-cedar": ["MTLc3m.ttf"],
    "fonts-motoya-l-maruberi": ["MTLmr3m.ttf"],
    "fonts-mplus": ["Mplus1-Regular.otf"],
    "fonts-noto-cjk": ["NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc"],
    "fonts-rampart": ["RampartOne-Regular.ttf"],
    "fonts-reggae": ["ReggaeOne-Regular.ttf"],
    "fonts-seto": ["setofont.ttf"],
    "fonts-smiley-sans": ["SmileySans-Oblique.ttf"],
    "fonts-vlgothic": ["VL-Gothic-Regular.ttf"],
    "fonts-wqy-zenhei": ["wqy-zenhei.ttc"],
    "fonts-yozvox-yozfont-new-kana": ["YOzRN_.ttf"],
}
SIDE = 64  # of an image, unless told otherwise
CHARACTER = 7 / 8  # of it: the size of a character
NO_CHARACTER = "\U0010ffff"  # what a font draws of it, it draws of each character that it lacks


def characters() -> list[str]:
    """The 6,355 kanji of JIS X 0208, in its order: rows 16 to 84."""
    found = []
    for code in ((row, cell) for row in range(16, 85) for cell in range(1, 95)):
        try:
            found.append(bytes(0xA0 + part for part in code).decode("euc_jp"))
        except UnicodeDecodeError:  # the end of row 47, and of row 84
            pass
    return found


def draw(font: ImageFont.FreeTypeFont, character: str, rng: np.random.Generator, side: int) -> np.ndarray:
    """uint8 [side, side], 255 where there is no ink."""
    wide = Image.new("L", (2 * side, 2 * side), 255)  # its margin turns into the image, not black
    ImageDraw.Draw(wide).text((side, side), character, fill=0, font=font, anchor="mm")
    scale, angle = rng.uniform(0.85, 1.1), np.deg2rad(rng.uniform(-8, 8))
    shift = rng.uniform(-0.06 * side, 0.06 * side, 2)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    middle = side / 2 + shift
    start = side - np.array([[cos, sin], [-sin, cos]]) @ middle
    turned = wide.transform(
        (side, side), Image.Transform.AFFINE, (cos, sin, start[0], -sin, cos, start[1]), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(turned, np.float32) + rng.normal(0, 12, (side, side))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write(fonts: Path, target: Path, classes: int, seed: int, side: int = SIDE) -> None:
    """Draws `classes` of the kanji. target: an .npz of images uint8 [n, side, side], labels and ids.

    Raises:
      FileNotFoundError: if a font of FAMILIES is not somewhere below `fonts`.
    """
    there = {path.name: path for path in fonts.rglob("*") if path.is_file()}
    names = [name for files in FAMILIES.values() for name in files]
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(f"{fonts} has no {', '.join(missing)}; remove it, then: make {fonts}")
    every = characters()
    chosen = [every[n] for n in np.sort(np.random.default_rng(seed).choice(len(every), classes, replace=False))]
    images, labels, ids = [], [], []
    for number, name in enumerate(names):
        font = ImageFont.truetype(there[name], int(CHARACTER * side))
        none = bytes(font.getmask(NO_CHARACTER))
        for character in chosen:
            mask = font.getmask(character)
            if mask.getbbox() and bytes(mask) != none:
                images.append(draw(font, character, np.random.default_rng([seed, number, ord(character)]), side))
                labels.append(character)
                ids.append(f"{character}/{name}")
    np.savez(target, images=np.stack(images), labels=np.array(labels), ids=np.array(ids))
