"""Names and free text of any script in a PDF: Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai and CJK.

FiraGO (package ``pymupdf-fonts``) carries all but CJK, in two weights; it is shaped by HarfBuzz. CJK glyphs come from
Noto Sans CJK (package ``notojp-matplotlib``, used as a font file only), of which just the glyphs a report needs are
turned into a small TrueType font. Both fonts are under the SIL Open Font License and are embedded. Unicode unifies Han
characters that China, Taiwan, Hong Kong, Japan and Korea draw differently: a paragraph with kana is Japanese, one with
hangul Korean, any other what the configuration says. Direction follows the Unicode bidirectional algorithm (UAX #9).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reportlab.pdfgen.canvas import Canvas

REGULAR, BOLD = "FiraGO", "FiraGO-Bold"
_MISSING = "\u25a1"
_BRACKETS = {"(": ")", "[": "]", "{": "}", "\u2045": "\u2046", "\u27e8": "\u27e9", "\u300c": "\u300d"}
_HAN_SYSTEMS = {"zh-Hans": "ZHS ", "zh-Hant": "ZHT ", "zh-HK": "ZHH ", "ja": "JAN ", "ko": "KOR "}
"""Language (BCP 47) -> the font's language system, whose ``locl`` feature exchanges the glyphs."""
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_RTL_TYPES = {"R", "AL", "AN", "RLE", "RLO", "RLI"}


@dataclass(frozen=True)
class _Run:
    font: str
    text: str
    shaped: bool


class TextSetter:
    """Measures, wraps and draws text of any script.

    Not safe to share between threads: reportlab's fonts hold state. `report` uses it under a lock.

    Parameters
    ----------
    everything : str
        All the text that will be set; the CJK glyphs in it are prepared at once.
    han : str
        Language whose forms Han characters take where the text itself does not tell: zh-Hans, zh-Hant, zh-HK, ja, ko.
    """

    def __init__(self, everything: str, han: str = "zh-Hans"):
        self._han = han
        self._fira = {False: _register_fira(False), True: _register_fira(True)}
        self._covered = _fira_characters()
        missing = {c for c in _clean(everything) if ord(c) not in self._covered}
        self._cjk_characters = frozenset(c for c in missing if ord(c) in _cjk_cmap()) if missing else frozenset()

    def language(self, text: str) -> str:
        """Whose forms the Han characters of a paragraph take."""
        return "ja" if _KANA.search(text) else "ko" if _HANGUL.search(text) else self._han

    def missing(self, text: str) -> str:
        """Characters that neither font draws, each once; they are set as boxes."""
        return "".join(dict.fromkeys(c for c in _clean(text) if self._font_of(c, False, self._han)[0] is None))

    def width(self, text: str, size: float, *, bold: bool = False, han: str | None = None) -> float:
        """Width of one line, points."""
        return sum(self._run_width(run, size) for run in self._runs(text, bold, None, han))

    def draw(
        self,
        canvas: Canvas,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        bold: bool = False,
        align: str = "left",
        rtl: bool | None = None,
        han: str | None = None,
    ) -> None:
        """Draw one line with its baseline at ``y``.

        ``align`` says what ``x`` is: left, right or centre; ``rtl`` and ``han`` the direction and `language` of the
        paragraph the line is part of (None: the line's own).
        """
        from reportlab.pdfbase.ttfonts import shapeStr

        runs = self._runs(text, bold, rtl, han)
        if align != "left":
            total = sum(self._run_width(run, size) for run in runs)
            x -= total if align == "right" else total / 2
        for run in runs:
            line = canvas.beginText(x, y)
            line.setFont(run.font, size)
            line.textOut(shapeStr(run.text, run.font, size, force=True) if run.shaped else run.text)
            canvas.drawText(line)
            x += self._run_width(run, size)

    def clip(self, text: str, width: float, size: float, *, bold: bool = False) -> str:
        """As much of one line as fits, with an ellipsis where something is cut."""
        text = _clean(text)
        if self.width(text, size, bold=bold) <= width:
            return text
        han = self.language(text)
        return text[: self._fitting(text, width - self.width("…", size, bold=bold), size, bold, han)].rstrip() + "…"

    def wrap(self, text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
        """Break text into lines no wider than ``width`` points: at spaces, and between CJK characters."""
        lines: list[str] = []
        for paragraph in _clean(text, keep_breaks=True).split("\n"):
            line, han = "", self.language(paragraph)
            for piece in _pieces(paragraph):
                if self.width((line + piece).rstrip(), size, bold=bold, han=han) <= width:
                    line += piece
                    continue
                if line.strip():
                    lines.append(line.rstrip())
                line = piece.lstrip()
                while len(line) > 1 and (cut := self._fitting(line, width, size, bold, han)) < len(line.rstrip()):
                    lines.append(line[:cut])
                    line = line[cut:]
            lines.append(line.rstrip())
        return lines

    def _fitting(self, text: str, width: float, size: float, bold: bool, han: str) -> int:
        """How many characters of a word that is too long fit on a line, at least one."""
        low, high = 1, min(len(text.rstrip()), int(width / size * 8) + 2)  # no glyph run is narrower than that
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle], size, bold=bold, han=han) <= width:
                low = middle
            else:
                high = middle - 1
        return low

    def is_rtl(self, text: str) -> bool:
        """True where a paragraph runs from right to left."""
        return _base_level(text) == 1

    def _runs(self, text: str, bold: bool, rtl: bool | None, han: str | None) -> list[_Run]:
        runs: list[_Run] = []
        han = han or self.language(text)
        for part in _visual_order(_clean(text), rtl):
            start = len(runs)
            for character in part.text:
                font, shaped = self._font_of(character, bold, han)
                if font is None:
                    character, font, shaped = _MISSING, self._fira[bold], True
                if len(runs) > start and runs[-1].font == font:
                    runs[-1] = _Run(font, runs[-1].text + character, shaped)
                else:
                    runs.append(_Run(font, character, shaped))
            if part.rtl:
                runs[start:] = reversed(runs[start:])
        return runs

    def _font_of(self, character: str, bold: bool, han: str) -> tuple[str | None, bool]:
        if ord(character) in self._covered or unicodedata.category(character) == "Cf":  # joiners: HarfBuzz heeds them
            return self._fira[bold], True
        if character in self._cjk_characters:
            return _register_cjk(self._cjk_characters, han), False
        return None, False

    @staticmethod
    def _run_width(run: _Run, size: float) -> float:
        from reportlab.pdfbase.pdfmetrics import stringWidth
        from reportlab.pdfbase.ttfonts import shapeStr

        if not run.shaped:
            return stringWidth(run.text, run.font, size)
        shaped = shapeStr(run.text, run.font, size, force=True)
        return sum(glyph.x_advance for glyph in shaped.__shapeData__) * size / 1000


@dataclass(frozen=True)
class _Part:
    text: str
    rtl: bool


def _clean(text: str, *, keep_breaks: bool = False) -> str:
    """Compose, and turn what has no picture (controls, tabs) into spaces."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        c if (keep_breaks and c == "\n") or unicodedata.category(c) not in ("Cc", "Cs", "Co", "Cn") else " "
        for c in text
    )


def _base_level(text: str) -> int:
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            return 1
        if kind == "L":
            return 0
    return 0


@lru_cache(maxsize=2048)
def _visual_order(text: str, rtl: bool | None = None) -> tuple[_Part, ...]:
    """Split a line into runs of one direction, left to right as they appear; each run's text stays logical."""
    if not rtl and not any(unicodedata.bidirectional(c) in _RTL_TYPES for c in text):
        return (_Part(text, False),)
    from bidi import algorithm

    base = _base_level(text) if rtl is None else int(rtl)
    storage = algorithm.get_empty_storage()
    storage["base_level"] = base
    storage["base_dir"] = ("L", "R")[base]
    algorithm.get_embedding_levels(text, storage)
    algorithm.explicit_embed_and_overrides(storage)
    algorithm.resolve_weak_types(storage)
    _resolve_brackets(storage["chars"])
    algorithm.resolve_neutral_types(storage, False)
    algorithm.resolve_implicit_levels(storage, False)
    runs: list[list[Any]] = []
    for item in storage["chars"]:
        if runs and runs[-1][1] == item["level"]:
            runs[-1][0] += item["ch"]
        else:
            runs.append([item["ch"], item["level"]])
    # Rule L2, on whole runs: from the highest level to the lowest odd one, reverse what is at that level or above.
    levels = [level for _, level in runs]
    for level in range(max(levels, default=0), 0, -1):
        i = 0
        while i < len(runs):
            j = i
            while j < len(runs) and runs[j][1] >= level:
                j += 1
            runs[i:j] = reversed(runs[i:j])
            i = max(j, i + 1)
    parts = []
    for text, level in runs:
        rtl = bool(level % 2)
        if rtl and not any(unicodedata.bidirectional(c) in ("R", "AL") for c in text):
            # HarfBuzz takes direction from the script, which brackets and spaces lack: turn them here.
            text, rtl = "".join(algorithm.MIRRORED.get(c, c) for c in reversed(text)), False
        parts.append(_Part(text, rtl))
    return tuple(parts)


def _resolve_brackets(characters: Any) -> None:
    """Rule N0, which python-bidi leaves out: a pair of brackets goes with what it encloses or with the paragraph."""
    items = list(characters)
    open_at: list[tuple[str, int]] = []
    pairs = []
    for i, item in enumerate(items):
        if item["ch"] in _BRACKETS:
            open_at.append((_BRACKETS[item["ch"]], i))
        elif item["ch"] in _BRACKETS.values():
            for k in range(len(open_at) - 1, -1, -1):
                if open_at[k][0] == item["ch"]:
                    pairs.append((open_at[k][1], i))
                    del open_at[k:]
                    break
    strong = {"L": "L", "R": "R", "EN": "R", "AN": "R"}
    for start, end in sorted(pairs):
        embedding = "LR"[items[start]["level"] % 2]
        inside = {strong[items[i]["type"]] for i in range(start + 1, end) if items[i]["type"] in strong}
        if not inside:
            continue
        before = (strong[items[i]["type"]] for i in range(start - 1, -1, -1) if items[i]["type"] in strong)
        direction = embedding if embedding in inside else next(before, embedding)
        items[start]["type"] = items[end]["type"] = direction


def _pieces(paragraph: str) -> list[str]:
    """Where a line may break: after spaces, and before or after a CJK character."""
    pieces: list[str] = []
    previous_wide = False
    for character in paragraph:
        wide = unicodedata.east_asian_width(character) in ("W", "F")
        closing = unicodedata.category(character) in ("Pe", "Pf", "Po")
        if not pieces or (pieces[-1].endswith(" ") and character != " ") or ((wide or previous_wide) and not closing):
            pieces.append(character)
        else:
            pieces[-1] += character
        previous_wide = wide
    return pieces


@cache
def _register_fira(bold: bool) -> str:
    from pymupdf_fonts import FiraGO_Bold, FiraGO_Regular
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    name, module = (BOLD, FiraGO_Bold) if bold else (REGULAR, FiraGO_Regular)
    pdfmetrics.registerFont(TTFont(name, io.BytesIO(module.fontbuffer), shapable=True))
    return name


@cache
def _fira_characters() -> frozenset[int]:
    from reportlab.pdfbase import pdfmetrics

    return frozenset(pdfmetrics.getFont(_register_fira(False)).face.charToGlyph)


@cache
def _cjk_font() -> Any:
    from fontTools.ttLib import TTFont

    spec = importlib.util.find_spec("notojp_matplotlib")  # found, not imported: importing it would restyle matplotlib
    if spec is None or spec.origin is None:
        return None
    return TTFont(Path(spec.origin).parent / "fonts" / "NotoSansCJKjp-Regular.otf", lazy=True)


@cache
def _cjk_cmap() -> dict[int, str]:
    font = _cjk_font()
    return {} if font is None else font.getBestCmap()


@cache
def _local_forms(han: str) -> dict[str, str]:
    """Glyph -> the glyph that a language writes instead (OpenType ``locl`` of the Han script)."""
    gsub = _cjk_font()["GSUB"].table
    script = next(record.Script for record in gsub.ScriptList.ScriptRecord if record.ScriptTag == "hani")
    system = next(r.LangSys for r in script.LangSysRecord if r.LangSysTag == _HAN_SYSTEMS[han])
    forms: dict[str, str] = {}
    for index in system.FeatureIndex:
        feature = gsub.FeatureList.FeatureRecord[index]
        if feature.FeatureTag == "locl":
            for lookup in feature.Feature.LookupListIndex:
                for table in gsub.LookupList.Lookup[lookup].SubTable:
                    table = getattr(table, "ExtSubTable", table)
                    forms |= getattr(table, "mapping", {})
    return forms


@lru_cache(maxsize=64)
def _register_cjk(characters: frozenset[str], han: str) -> str:
    """Make a TrueType font of these characters' outlines (reportlab embeds no CFF) and register it."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.cu2quPen import Cu2QuPen
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    source, cmap = _cjk_font(), _cjk_cmap()
    outlines = source.getGlyphSet()
    forms = _local_forms(han)
    names = {ord(c): forms.get(cmap[ord(c)], cmap[ord(c)]) for c in sorted(characters)}
    order = [".notdef", *dict.fromkeys(names.values())]
    glyphs, widths = {}, {}
    for name in order:
        pen = TTGlyphPen(None)
        outlines[name].draw(Cu2QuPen(pen, 1.0, reverse_direction=True))
        glyphs[name] = pen.glyph()
        widths[name] = outlines[name].width
    digest = hashlib.sha256("".join(sorted(characters)).encode()).hexdigest()[:12]
    family = f"NotoSansCJK-{han.replace('-', '')}-{digest}"
    builder = FontBuilder(source["head"].unitsPerEm, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(
        {n: (width, glyphs[n].xMin if glyphs[n].numberOfContours else 0) for n, width in widths.items()}
    )
    builder.setupHorizontalHeader(ascent=source["hhea"].ascent, descent=source["hhea"].descent)
    builder.setupNameTable({"familyName": family, "styleName": "Regular", "psName": family, "fullName": family})
    builder.setupOS2(sTypoAscender=880, sTypoDescender=-120, usWinAscent=1160, usWinDescent=288, fsType=0)
    builder.setupPost()
    buffer = io.BytesIO()
    builder.save(buffer)
    buffer.seek(0)
    pdfmetrics.registerFont(TTFont(family, buffer, shapable=False))
    return family
