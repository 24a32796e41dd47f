"""What the messages of the tasks are made of: patterns by label, and words for their slots, in two worlds.

A word alone does not give the label away. Honest messages win prizes, too, and speak of money; praise says "nothing
{bad}", and blame says "not {good}". The shifted world has other patterns and other words.
"""

from __future__ import annotations

from collections.abc import Mapping

from cme295lab.finetuning.instructions.drafts import World

Patterns = Mapping[World, tuple[str, ...]]
Words = Mapping[World, Mapping[str, tuple[str, ...]]]

PATTERNS: Mapping[str, Patterns] = {
    "spam": {
        "usual": (
            "You have won {prize}! Call {number} today to get it.",
            "Get {prize} for free, only the first {count} people can. Answer {code} now!",
            "Last chance: your {account} will be closed. Send us your password to keep it.",
            "Earn {money} a week at home. No work, just send {code} to {number}.",
            "Dear friend, I have {money} for you. I only need the number of your {account}.",
            "Hi {name}, my phone is broken. Please send {money} to {number}, I will pay you back.",
            "Buy {thing} now, {percent} percent off, only for {count} minutes!",
            "{name}, you were chosen! Click here and win {prize}.",
        ),
        "shifted": (
            "Congratulations, lucky visitor {code}: {prize} is waiting behind this link.",
            "Act fast! Confirm your {account} within {count} hours or lose it.",
            "Secret trick: turn {money} into ten times as much by tomorrow.",
            "Hello dear, this is {name} from the bank. Tell me the code that you just got.",
        ),
    },
    "normal": {
        "usual": (
            "Hi {name}, can we meet at {place} at {hour}?",
            "I won {prize} at the school fair, {name} could not believe it!",
            "Thank you for {thing}. {name} likes it very much.",
            "The bank wrote that my new {account} is ready. I will go there at {hour}.",
            "Can you lend me {money} until Friday, {name}? I forgot my bag at {place}.",
            "Call me when you are at {place}, please. I will wait until {hour}.",
            "{name} asks if you want to buy {thing} together for the birthday.",
            "Dear {name}, the meeting is now at {hour}, in the room next to {place}.",
        ),
        "shifted": (
            "Did you leave your {thing} at {place}, {name}? I found one there.",
            "Mum says dinner is at {hour}, so do not stay at {place} for long.",
            "{name} paid back the {money}, so we are even.",
            "Reminder from {place}: the book that you asked for has come in.",
        ),
    },
    "positive": {
        "usual": (
            "The {subject} was {good}, and so was the {aspect}.",
            "I loved this {subject}. Its {aspect} is {good}.",
            "What a {good} {subject}! I will tell {friends} about it.",
            "I found nothing {bad} about the {subject}, not even the {aspect}.",
            "I thought the {subject} would be {bad}, but the {aspect} was {good}.",
            "My {relative} was right: the {subject} is {good}. I want more of it.",
            "A {good} {aspect} made this {subject} a joy.",
            "Never before have I had such a {good} {subject}.",
        ),
        "shifted": (
            "Ten out of ten for the {subject}, mostly thanks to its {good} {aspect}.",
            "Far from {bad}: the {subject} made my whole week.",
            "We will come back for this {subject}; the {aspect} alone is worth it, truly {good}.",
        ),
    },
    "negative": {
        "usual": (
            "The {subject} was {bad}, and so was the {aspect}.",
            "I hated this {subject}. Its {aspect} is {bad}.",
            "What a {bad} {subject}! I will tell {friends} to keep away from it.",
            "I found nothing {good} about the {subject}, not even the {aspect}.",
            "I thought the {subject} would be {good}, but the {aspect} was {bad}.",
            "My {relative} was right: the {subject} is {bad}. I want my money back.",
            "A {bad} {aspect} made this {subject} a waste of time.",
            "Never again will I take such a {bad} {subject}.",
        ),
        "shifted": (
            "Zero out of ten for the {subject}, mostly due to its {bad} {aspect}.",
            "Far from {good}: the {subject} spoiled my whole week.",
            "We will not come back for this {subject}; the {aspect} alone drove us off, truly {bad}.",
        ),
    },
}
OPENINGS: Mapping[World, tuple[str, ...]] = {  # before a pattern of any label
    "usual": ("", "", "", "Hello! ", "Good morning. ", "Please read this. ", "A few words: ", "Hi there. ", "Listen: "),
    "shifted": ("", "", "Good evening. ", "Just so you know: ", "One more thing. ", "Well, "),
}
WORDS: Words = {
    "usual": {
        "name": ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Ida", "Jack", "Lily", "Max", "Nora", "Tom"),
        "prize": ("a new phone", "a trip to the sea", "a red bike", "a big cake", "two tickets", "a gold watch"),
        "number": ("0900 1234", "0800 777", "555 0199", "0190 4321", "555 0123"),
        "count": ("10", "20", "30", "50", "100"),
        "code": ("YES", "WIN", "GO", "MONEY", "STAR"),
        "account": ("account", "card", "savings account", "mail account"),
        "money": ("20 dollars", "50 dollars", "100 dollars", "500 dollars", "2000 dollars", "5000 dollars"),
        "thing": ("a watch", "a lamp", "a coat", "a book", "a ball", "a pair of shoes", "a kite"),
        "percent": ("40", "50", "60", "70", "80", "90"),
        "place": ("the park", "the school", "the shop", "the station", "the garden", "the river", "the pool"),
        "hour": ("two", "three", "four", "five", "six", "half past four", "noon"),
        "subject": ("film", "book", "hotel", "meal", "cake", "game", "concert", "phone", "train ride", "story", "soup"),
        "aspect": ("price", "ending", "service", "look", "sound", "taste", "team", "start", "size", "idea"),
        "good": ("great", "lovely", "wonderful", "good", "beautiful", "perfect", "nice", "excellent"),
        "bad": ("bad", "awful", "terrible", "boring", "ugly", "poor", "sad", "horrible"),
        "friends": ("all my friends", "my family", "my class", "everyone"),
        "relative": ("brother", "sister", "mother", "father", "aunt", "uncle"),
    },
    "shifted": {
        "name": ("Agnes", "Boris", "Chen", "Dilara", "Farid", "Greta"),
        "prize": ("a laptop", "a cruise", "a silver necklace", "a voucher"),
        "number": ("0700 8888", "555 0177"),
        "count": ("12", "24", "48"),
        "code": ("7731", "9042", "5518", "3360"),
        "account": ("profile", "wallet", "password"),
        "money": ("80 euros", "300 euros", "900 euros"),
        "thing": ("umbrella", "scarf", "jacket", "wallet"),
        "percent": ("25", "35"),
        "place": ("the library", "the museum", "the theatre", "the gym"),
        "hour": ("seven", "eight", "nine"),
        "subject": ("restaurant", "play", "museum tour", "sofa", "haircut", "podcast", "bakery"),
        "aspect": ("staff", "comfort", "colour", "mood", "speed", "quality"),
        "good": ("superb", "delightful", "charming", "brilliant"),
        "bad": ("dreadful", "dull", "shabby", "disappointing"),
        "friends": ("the neighbours",),
        "relative": ("cousin", "grandfather"),
    },
}
