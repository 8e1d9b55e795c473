"""Tells how a file's text is encoded: marks, zero bytes, strict UTF-8, then the most plausible old encoding.

An old encoding cannot be proved, only be likely: every candidate decodes the beginning of the file, and its
letters are scored by how common they are and how they stand beside each other.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import re
import unicodedata

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
"""Encodings whose line ends are no single bytes."""

NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with BOM",
    "gb18030": "GB18030",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "iso2022_jp": "ISO-2022-JP",
    "cp950": "Big5",
    "cp949": "EUC-KR",
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "koi8_r": "KOI8-R",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
}
"""What a person calls a codec of Python."""

LEGACY = tuple(name for name in NAMES if not name.startswith("utf"))
"""The old encodings, all of them with lines that end in single bytes."""
_SCORED_ONES = tuple(name for name in LEGACY if name != "iso2022_jp")
SCORED = 3000
"""Characters outside ASCII that decide."""

_COMMON_HAN = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然"
    "家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把"
    "机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果"
    "加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔"
    "请問这這個們來為國說時會對過發後裡種經麼學現當沒動還進從實軍無與長機關點業將兩間問應戰頭體見產話給門兒東聲員"
    "論處義條氣題爾請謝吗嗎呢吧您怎哪谁誰让讓叫做才再更電脑腦订訂单單退款登录錄密码碼我們幫帮助答客服需您好"
)
_COMMON_HANGUL = frozenset(
    "이다는에의을를가은고하지한로기사서도리어자대시그나아인수일정것보들으면라부해있장상전과원제주니안스조오여구"
    "만경동관우무공소선신비연데게며적요습합까었했없되세용성중세금문화내말거위물야당생국야르를려와드님십좋때"
)
_COMMON_ACCENTS = frozenset("éèàçêôùîâëïäöüßñáíóúãåæøœìòÉÈÀÇÖÜÄÅØ¿¡«»’“”–—…°º€£ğışĞİŞ")
_COMMON_SLAVIC = frozenset("ąćęłńśźżĄĆĘŁŃŚŹŻěščřžýůďťňőűŐŰţşăČŠŽŘĂõû")
_COMMON_LETTERS = frozenset("оеаинтсрвлкαοιετσνηρπκμλς")
_USUAL_LETTERS = frozenset("мдпуяыьгзбчйхжшюцщэфёіїєґυάίόέωήγύδχθφβώξζψ")
_AT_THE_END = frozenset("ìùò")
_KANA = frozenset(chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB)))
_NOT_IN = {"cp1252": "šžŠŽ", "cp1254": "šžŠŽ", "gb18030": _KANA, "cp950": _KANA, "cp949": _KANA}
"""Letters that an encoding can write and its languages do not use."""
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_MARKS = re.compile(r"[、。，．！？：；「」『』（）・〜～【】《》〈〉…“”‘’—·ー￥　]")


def encoding_of(head: bytes, whole: bool) -> str | None:
    """The Python codec of a file that begins with `head` (`whole`: nothing follows); None for no text."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if 0 in head and (wide := _wide(head)):
        return wide
    if _is_binary(head):
        return None
    if b"\x1b$" in head and _decoded(head, "iso2022_jp", whole):
        return "iso2022_jp"
    if _decoded(head, "utf-8", whole) is not None or mostly_utf8(head):
        return "utf-8"
    return legacy(head)


def _wide(head: bytes) -> str | None:
    """UTF-16 and UTF-32 without a mark, by where the zero bytes of ASCII stand."""
    head = head[: len(head) // 4 * 4] or head
    zeros = [head[side::4].count(0) for side in range(4)]
    quarter = max(len(head) // 4, 1)
    for name, filled in (("utf-32-le", zeros[2:]), ("utf-32-be", zeros[:1])):
        if min(filled) > 0.95 * quarter and sum(zeros) > 2.2 * quarter:
            return name
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if max(even, odd) < 0.02 * 2 * quarter or min(even, odd) > 0.25 * max(even, odd):
        return None
    if max(even, odd) < 0.3 * 2 * quarter and _decoded(head, "utf-8", False) is not None:
        return None
    name = "utf-16-le" if odd > even else "utf-16-be"
    text = _decoded(head, name, False)
    return name if text is not None and not _is_binary(text[:4096].encode("utf-8", "replace")) else None


def _is_binary(head: bytes) -> bool:
    controls = len(head) - len(head.translate(None, bytes((*range(9), 11, *range(14, 27), 28, 29, 30, 31))))
    return controls > 0.02 * len(head) + (0 if len(head) < 64 else 1)


def _decoded(head: bytes, encoding: str, whole: bool) -> str | None:
    """The strictly decoded text; a character cut at the end of the head is no error."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(head, whole)
    except UnicodeError:
        return None


def mostly_utf8(data: bytes) -> bool:
    """True where bad bytes are the exception: more good characters outside ASCII than bad ones."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return sum(not character.isascii() for character in text) - bad > bad


def legacy(data: bytes) -> str:
    """The likeliest of the old encodings; Windows-1252 where none fits."""
    data = _telling(data)
    scored = [
        (_score(text, name), name)
        for name in _SCORED_ONES
        if (text := _decoded(data, name, False)) is not None
    ]
    return max(scored, key=lambda entry: entry[0], default=(0.0, "cp1252"))[1]


def _telling(data: bytes) -> bytes:
    """Only the lines that hold bytes outside ASCII: they decide, and there may be few of them."""
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    return b"\n".join(lines)[: 4 * SCORED]


def _score(text: str, encoding: str) -> float:
    """The mean weight of a character outside ASCII, as it stands beside its neighbours."""
    total, count = 0.0, 0
    for found in itertools.islice(_FOREIGN.finditer(text), SCORED):
        at, character = found.start(), found.group()
        after = text[at + 1 : at + 2]
        total += _weight(character) + _beside(text[at - 1 : at] if at else " ", character, after)
        total -= 3.0 * (character in _NOT_IN.get(encoding, ""))
        count += 1
    return total / max(count, 1)


@functools.lru_cache(maxsize=4096)
def _weight(character: str) -> float:
    """How common a character is where its script is written."""
    code = ord(character)
    if 0x4E00 <= code <= 0x9FFF:
        return 5.0 if character in _COMMON_HAN else 1.2
    if 0xAC00 <= code <= 0xD7A3:
        return 4.5 if character in _COMMON_HANGUL else 0.5
    if 0x3041 <= code <= 0x3096:
        return 4.5
    if 0x30A1 <= code <= 0x30FC:
        return 3.0
    if character in _COMMON_LETTERS:
        return 2.8
    if character in _USUAL_LETTERS:
        return 1.9
    if _MARKS.match(character):
        return 2.5
    if character in _COMMON_ACCENTS:
        return 2.2
    if character in _COMMON_SLAVIC:
        return 1.5 if character in "õû" else 1.9
    return _rare(character, code)


def _rare(character: str, code: int) -> float:
    if 0xFF61 <= code <= 0xFF9F:
        return -1.0
    category = unicodedata.category(character)
    if category in ("Cc", "Cn", "Co", "Cs"):
        return -5.0
    if category in ("Lu", "Ll"):
        return 0.6 if code >= 0x370 else 0.0
    return -1.5 if 0x2500 <= code < 0x25A0 or category in ("Sk", "Sc", "So", "Sm") else -0.5


def _beside(before: str, character: str, after: str) -> float:
    """Letters of one alphabet stand together, a capital begins a word, some accents end one."""
    if character in _AT_THE_END and after.isalpha():
        return -2.5
    if character in "¿¡ºª" and before.isalpha() and after.isalpha():
        return -3.0
    if character == "ã" and after.isalpha() and after not in "oeis":
        return -2.0
    if character == "õ" and after == "e":
        return 1.0
    if not character.isalpha() or not before.isalpha():
        return 0.0
    code, ahead = ord(character), ord(before)
    if code >= 0x2E80 or ahead >= 0x2E80:
        return 0.0 if ahead >= 0x2E80 and code >= 0x2E80 else -2.0
    wrong_case = -3.0 if character.isupper() and before.islower() else 0.0
    if (code >= 0x370) != (ahead >= 0x370):
        return wrong_case - 3.0
    return wrong_case + (0.3 if ahead < 0x80 or code >= 0x370 else -1.0)
