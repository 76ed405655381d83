"""Text to tokenize: many languages, code, emoji, white space, digits, marks, control characters, broken UTF-8. The same on every run."""

import random
import unicodedata

SENTENCES = [
    "All human beings are born free and equal in dignity and rights. They're endowed with reason; we'll see, I'd say it's so.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren; Straße, Größe, Übermaß und ẞ.",
    "Tous les êtres humains naissent libres et égaux en dignité. L'été, l'œuvre, aujourd'hui, ça va ?",
    "Todos los seres humanos nacen libres. ¿Qué tal, señor? ¡Mañana será otro día!",
    "Tutti gli esseri umani nascono liberi: perché no, così è, dell'uomo.",
    "Wszyscy ludzie rodzą się wolni: zażółć gęślą jaźń.",
    "Všichni lidé se rodí svobodní: příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Bütün insanlar hür doğarlar: İstanbul'da ılık ığdır, ŞİŞLİ.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. ١٢٣٤٥ مُحَمَّد",
    "تمام انسان‌ها آزاد به دنیا می‌آیند. ۱۲۳۴",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। १२३",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে। ১২৩",
    "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ๑๒๓",
    "ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ. မြန်မာ ဘာသာ ភាសាខ្មែរ",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，２０２４年。",
    "すべての人間は、生まれながらにして自由であり、ﾊﾝｶｸ ガギグ ゔ が。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 한글",
    "ყველა ადამიანი იბადება თავისუფალი. Բոլոր մարդիկ ծնվում են ազատ։ ሰው ሁሉ ነጻ ሆኖ ይወለዳል",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ 𐐀𐐁𐐨 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 Ⅷ ½ ² ₃ ㊿ ﬁ ﬀ Å Å Ω Ω",
]
CODE = [
    'int main(void)\n{\n\tfor (size_t i = 0; i < n; i++)\n\t\tprintf("%zu\\n", x[i] << 2);\r\n    return 0;\n}\n',
    "def f(a, *, b=None):\n    if a != b:\n        return {k: v for k, v in a.items()}  # it's 100%\n\n\n",
    "const x = async () => { await fetch(`/api/${id}?q=1&r[]=2`); }; // TODO: don't\n",
    "<div class=\"a\"><h1>Title</h1><p>&nbsp;</p><br/></div>\n<table>\n  <tr><td>1</td></tr>\n</table>\n",
    "SELECT * FROM t WHERE a >= 1e-5 AND b IN ('x','y') ORDER BY 1 DESC;\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```sh\n$ ls -la ~/.config && echo $?\n```\n\n\n\n",
    "$$\\sum_{i=0}^{n} \\frac{x^i}{i!} = e^x$$ \\textbf{x} ===== ----- ***** ....... !!!??? ~~~ ^^^ |||\n",
    "{\"a\":[1,2.50,-3e10,null,true],\"\\u00e9\":\"\\\\\"}\n0x1F 0b1010 192.168.0.1 3.14159265358979 1,234,567 2024-01-31T12:00:00Z\n",
]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "1️⃣", "🧑🏿‍🚀", "☃", "🫠", "🤷🏻‍♀️", "✈️"]
SPACES = [" ", "  ", "   ", "    ", " " * 7, " " * 15, " " * 33, " " * 70, "\t", "\t\t", "\t" * 5, "\n", "\n\n", "\n\n\n", "\n" * 9,
          "\n" * 40, "\r\n", "\r\n\r\n", "\r", "\v", "\f", "\x85", "\u00a0", "\u1680", "\u180e", "\u2003", "\u2028", "\u2029",
          "\u202f", "\u3000", "\u200b", "\ufeff", " \n", "\n ", " \t\n  ", " \u00a0 "]
MARKS = ["e\u0301", "a\u0308\u0323", "a\u0323\u0308", "\u0301", "q\u0307\u0323", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0928\u093c",
         "Z\u0351\u036b\u0343\u0363", "\u212b", "\u2126", "\u0344", "\u0958", "\ufb1d", "\u05d9\u05b4", "s\u0323\u0307", "\u1e9b\u0323"]
PIECES = ["'s", "'S", "'t", "'RE", "'ve", "'LL", "'ſ", "’s", "\u2581", "\u2581\u2581", "\u2581a", "<", ">", "</", "<0x0A>", "<0x41>", "<unk>",
          "\x00", "\x01", "\x07", "\x1b[31m", "\x7f", "\x80", "\x9f", "\u00ad", "\ufffd", "\ufffe", "\U0010ffff", "\ue000",
          "0", "12", "123", "1234567890", "000000", "٣", "Ⅻ", "²³", "aaaaaa", "ababab", "hahaha", "AaAa", "camelCaseWord", "XMLHttpRequest",
          "_", "__init__", "-", "--", "...", "…", "!", "?!", "$", "€", "^", "`", "|", "+", "=", "a", "b", "x", "the", " the", "ing"]
BROKEN = [b"\xff", b"\x80", b"\xc3", b"\xe2\x96", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xe2\x28\xa1", b"\xf4\x90\x80\x80"]

# Scripts that all Unicode versions in use agree on; single code points that came later are left out by their category.
RANGES = [(0x20, 0x7E), (0xA0, 0x17F), (0x180, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x530, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
          (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x27BF),
          (0x3000, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF),
          (0x1F300, 0x1F64F), (0x20000, 0x2A6D6)]


def is_old(c):
    """Assigned in Unicode 14 (Python 3.11's), whose properties PCRE2 10.42 knows."""
    return unicodedata.category(chr(c)) not in ("Cn", "Cs") and c not in NEWER


NEWER = {0x0CF3, 0x0ECE, 0x1C89, 0x1C8A, 0x2427, 0x2428, 0x2429} | set(range(0x10EFC, 0x10F00)) | set(range(0xA7CB, 0xA7DD))


def random_piece(rng):
    kind = rng.randrange(10)
    if kind < 3:
        low, high = rng.choice(RANGES)
        return "".join(chr(c) for c in (rng.randint(low, high) for _ in range(rng.randint(1, 4))) if is_old(c))
    if kind < 5:
        return rng.choice(SPACES)
    if kind == 5:
        return rng.choice(EMOJI + MARKS)
    if kind == 6:
        sentence = rng.choice(SENTENCES)
        start = rng.randrange(len(sentence))
        return sentence[start:start + rng.randint(1, 12)]
    return rng.choice(PIECES)


def random_strings(seed, n):
    """n short byte strings; one in 20 is not UTF-8."""
    rng = random.Random(seed)
    strings = []
    for _ in range(n):
        text = "".join(random_piece(rng) for _ in range(rng.randint(0, 6))).encode("utf-8", "replace")
        if rng.randrange(20) == 0:
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(BROKEN) + text[at:]
        strings.append(text)
    return strings


def mixed_text(seed, n_bytes):
    """Documents of at least n_bytes together: from 100 bytes to a third of the whole."""
    rng = random.Random(seed)
    documents, total = [], 0
    for size in [n_bytes // 3, n_bytes // 6] + [2000, 20000, 100, 50000, 5000] * 40:
        parts, n = [], 0
        while n < size:
            kind = rng.randrange(20)
            if kind < 10:
                part = rng.choice(SENTENCES) + rng.choice([" ", "\n", " "])
            elif kind < 14:
                part = rng.choice(CODE)
            else:
                part = "".join(random_piece(rng) for _ in range(rng.randint(1, 5)))
            part = part.encode("utf-8", "replace")
            if rng.randrange(200) == 0:
                part += rng.choice(BROKEN)
            parts.append(part)
            n += len(part)
        documents.append(b"".join(parts))
        total += n
        if total >= n_bytes:
            break
    return documents


def every_code_point():
    """Each assigned code point beside a letter, a digit and a space: shows whether both sides sort it into the same class."""
    strings, part = [], []
    for c in range(1, 0x110000):
        if 0xE000 <= c < 0xF900 or c >= 0xE0200 or not is_old(c):
            continue
        part.append(f"a{chr(c)}1 {chr(c)}")
        if len(part) == 8:
            strings.append("".join(part).encode())
            part = []
    return strings + ["".join(part).encode()]
