"""The words of the avatar domain: DiceBear's variant names and what captions call them."""

#: The value of an attribute that is absent.
NONE = "none"

TOPS = {
    "bigHair": "big hair",
    "bob": "bob hair",
    "bun": "bun hair",
    "curly": "curly hair",
    "curvy": "wavy hair",
    "dreads": "dreadlocks",
    "dreads01": "cropped dreadlocks",
    "dreads02": "spiky dreadlocks",
    "frida": "flower crown",
    "frizzle": "quiff hair",
    "fro": "afro hair",
    "froBand": "headband afro hair",
    "hat": "brim hat",
    "longButNotTooLong": "combed hair",
    "miaWallace": "fringe hair",
    "shaggy": "shaggy hair",
    "shaggyMullet": "mullet hair",
    "shavedSides": "shaved hair",
    "shortCurly": "short curly hair",
    "shortFlat": "short flat hair",
    "shortRound": "buzzed hair",
    "shortWaved": "short wavy hair",
    "sides": "bald hair",
    "straight01": "straight hair",
    "straight02": "long straight hair",
    "straightAndStrand": "strand straight hair",
    "theCaesar": "caesar hair",
    "theCaesarAndSidePart": "parted hair",
    "turban": "turban",
    "winterHat02": "earflap hat",
    "winterHat03": "bobble hat",
    "winterHat04": "cat hat",
    "winterHat1": "fur hat",
}
#: Tops that show the hat's colour instead of the hair's.
HATS = ("hat", "turban", "winterHat02", "winterHat03", "winterHat04", "winterHat1")

FACIAL_HAIR = {
    "beardLight": "stubble beard",
    "beardMajestic": "majestic beard",
    "beardMedium": "medium beard",
    "moustacheFancy": "fancy moustache",
    "moustacheMagnum": "thick moustache",
}
GLASSES = {
    "eyepatch": "eyepatch",
    "kurt": "oval glasses",
    "prescription01": "thin glasses",
    "prescription02": "square glasses",
    "round": "round glasses",
    "sunglasses": "sunglasses",
    "wayfarers": "wayfarer glasses",
}
MOUTHS = {
    "smile": "smiling",
    "sad": "sad",
    "screamOpen": "shouting",
    "serious": "serious",
    "tongue": "tongue out",
    "grimace": "gritting teeth",
}
EYES = {
    "default": "eyes open",
    "closed": "eyes closed",
    "surprised": "eyes wide",
    "wink": "winking",
    "side": "looking aside",
    "hearts": "heart eyes",
    "xDizzy": "dizzy eyes",
}
EYEBROWS = ("default", "angry", "raisedExcited", "sadConcerned", "flatNatural", "upDown")
CLOTHES = {
    "hoodie": "hoodie",
    "blazerAndShirt": "blazer",
    "overall": "overalls",
    "shirtCrewNeck": "t-shirt",
    "shirtVNeck": "v-neck",
}
COLOURS = {
    "red": "#d5312f",
    "orange": "#f2892b",
    "yellow": "#f5d63d",
    "green": "#3c9d4e",
    "teal": "#2fb5ad",
    "blue": "#3467cf",
    "purple": "#8146b8",
    "pink": "#f48fb8",
    "white": "#f4f4f4",
    "gray": "#8b9096",
    "black": "#24282c",
}
SKIN_ANCHORS = ("#614335", "#d08b5b", "#ae5d29", "#edb98a", "#ffdbb4", "#3f2a20")
HAIR_ANCHORS = (
    "#a55728",
    "#2c1b18",
    "#b58143",
    "#d6b370",
    "#724133",
    "#f59797",
    "#ecdcbf",
    "#c93305",
    "#e8e1e1",
    "#6b6f7a",
)
GLASSES_COLOURS = ("#262e33", "#25557c", "#8d3b2e", "#e6e6e6")

#: Names for continuous colours, by the nearest anchor.
HAIR_WORDS = {
    "black": "#2c1b18",
    "brown": "#724133",
    "auburn": "#a55728",
    "blond": "#d6b370",
    "platinum": "#ecdcbf",
    "ginger": "#c93305",
    "rose": "#f59797",
    "silver": "#e8e1e1",
    "slate": "#6b6f7a",
}
SKIN_WORDS = {
    "pale": "#ffdbb4",
    "light": "#edb98a",
    "tan": "#d08b5b",
    "bronze": "#ae5d29",
    "brown": "#614335",
    "dark": "#3f2a20",
}
