"""The words that stories are filled with.

Every noun is a single, countable thing with no article, so that "a", "the" and "{their}" may stand before it; every
place can follow "went to", every time can begin a sentence.
"""

from __future__ import annotations

GIRLS = (
    "Anna", "Bella", "Clara", "Dina", "Ella", "Fatima", "Grace", "Hana", "Ida", "June", "Kira", "Lily", "Maya", "Nora",
    "Olga", "Priya", "Rosa", "Sara", "Tess", "Yuki",
)  # fmt: skip
BOYS = (
    "Adam", "Ben", "Carlos", "David", "Emil", "Finn", "George", "Hugo", "Ivan", "Jack", "Kofi", "Leo", "Max", "Noah",
    "Omar", "Paul", "Ravi", "Sam", "Tom", "Victor",
)  # fmt: skip
ANIMALS = (
    "dog", "cat", "rabbit", "hedgehog", "squirrel", "duck", "owl", "mouse", "turtle", "pony", "frog", "goat", "robin",
    "lamb", "fox", "otter",
)  # fmt: skip
RELATIVES = ("mother", "father", "grandmother", "grandfather", "aunt", "uncle", "big sister", "big brother")
FRIENDS = ("teacher", "neighbour", "baker", "farmer", "gardener", "librarian", "fisherman", "doctor", "postman")
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "white", "black", "brown", "silver", "golden")
THINGS = (
    "ball", "kite", "book", "hat", "boat", "drum", "scarf", "puzzle", "bell", "basket", "lamp", "cup", "toy car",
    "wooden horse", "umbrella", "whistle", "blanket", "map", "box of crayons", "teddy bear", "music box", "bucket",
)  # fmt: skip
PLACES = (
    "the park", "the river", "the forest", "the beach", "the market", "the old mill", "the school garden", "the hill",
    "the library", "the lake", "the farm", "the meadow", "the harbour", "the playground", "the station", "the bridge",
)  # fmt: skip
WEATHER = (
    "the sun was shining", "it was a little cold", "a soft wind was blowing", "there were white clouds in the sky",
    "the grass was still wet", "the air smelled of flowers", "it had rained all night", "the first snow had fallen",
    "the leaves were falling", "it was very warm",
)  # fmt: skip
TIMES = (
    "one morning", "one afternoon", "one day", "one Sunday", "early one morning", "on a Monday", "one summer day",
    "one autumn day", "on the last day of school", "one evening", "on Saturday", "one winter day",
)  # fmt: skip
FOODS = (
    "apple", "sandwich", "cake", "bowl of soup", "pear", "piece of bread", "cookie", "orange", "pancake", "carrot",
    "slice of cheese", "banana",
)  # fmt: skip
FEELINGS = {
    "glad": ("happy", "glad", "proud", "excited", "cheerful", "full of joy"),
    "sad": ("sad", "worried", "upset", "disappointed", "unhappy"),
    "kind": ("kind", "brave", "clever", "patient", "friendly", "curious", "quiet"),
}
