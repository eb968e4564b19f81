"""The most frequent small words of some languages, by ISO 639-1, with the script that the language is written in.

They tell languages of one script apart, so words that a close neighbour has too are left out where others suffice.
"""

from __future__ import annotations

_LISTS = {
    "en": ("Latin", "the of and to in is that for it with was are be this by not have from which they you we his an"),
    "de": ("Latin", "der die und das den von zu mit sich des auf für ist nicht ein eine dem auch als werden aus oder"),
    "fr": ("Latin", "le les des et une du dans est pour qui sur pas plus par avec ce sont au il cette mais ou nous"),
    "es": ("Latin", "el los las y que en por con una para del es se al como pero su más este lo también son muy"),
    "it": ("Latin", "il di che è per un una non sono della con del gli dei nel alla anche più come questo ma le si"),
    "pt": ("Latin", "o os as e um uma não para com do da em que é no na por mais dos ao como mas foi são você"),
    "nl": ("Latin", "de het een van en niet dat op te zijn voor met aan er wordt ook bij naar maar om als dit"),
    "sv": ("Latin", "och att det som en är på av för med inte ett den till har jag men om var kan från vi"),
    "pl": ("Latin", "i w na się nie do z że jest to o jak po co ale przez dla od za jego oraz tym być"),
    "tr": ("Latin", "ve bir bu için ile da de olarak olan çok daha gibi ne en o kadar sonra ama var mi değil"),
    "id": ("Latin", "yang dan di dengan untuk tidak ini itu dari dalam pada adalah ke akan juga atau oleh saya"),
    "vi": ("Latin", "và của là có được cho không trong với các một những người này để đã khi từ đến như"),
    "ru": ("Cyrillic", "и в не на что с по как это из у за к для от же так но он она они был все или его"),
    "uk": ("Cyrillic", "і в не на що з та як це до у за для від й але він вона є було або його які бути"),
    "bg": ("Cyrillic", "и на да се от за в не с по е че са като това ще но си до или които при той"),
    "ar": ("Arabic", "في من على إلى أن هذا التي عن مع هذه كان لا ما الذي أو بعد قد كل ذلك هو بين"),
    "fa": ("Arabic", "و در به از که این است را با برای آن یک بود شد تا می هم بر خود ها اما"),
    "ur": ("Arabic", "کے کی میں ہے کو سے اور کا نے پر یہ ہیں کہ اس ایک بھی تھا نہیں جو کر"),
    "hi": ("Devanagari", "के में है की और को से का कि पर यह एक ने हैं भी नहीं इस लिए था जो तो कर"),
    "mr": ("Devanagari", "आणि आहे या ते हे आहेत मध्ये नाही एक होते होता काही व त्या असे म्हणून केले"),
}

STOP_WORDS = {language: (script, frozenset(words.split())) for language, (script, words) in _LISTS.items()}
