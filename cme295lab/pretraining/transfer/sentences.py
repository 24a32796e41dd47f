"""The words and patterns that labelled texts are made of.

A pattern has slots in braces. A slot is filled from a list of its name; the lists are long, so that a few labelled
examples show a small part of them and what is learned from those must carry over to the rest. Each class has words of
its own, both share many. The patterns of mails are the same for both classes; those of reviews hold words of the other
class at times: "I expected it to be {bad}, but it is {good}".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

Lists = Mapping[str, tuple[str, ...]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


SHARED: Lists = MappingProxyType(
    {
        "name": _words("Anna, Ben, Carla, David, Emma, Felix, Grace, Hugo, Ida, Jonas, Kim, Lea, Max, Nora, Oscar, "
                       "Paula, Robin, Sara, Tom, Vera"),
        "hello": _words("Hello, Hi {name}, Dear {name}, Hello {name}, Hi, Good morning, Dear all, Hey"),
        "day": _words("today, tomorrow, on Monday, on Friday, this week, this evening, next week, by Wednesday, soon"),
    }
)  # fmt: skip

MAIL_PATTERNS = (
    "{hello}, can you {do} the {noun} {day}?",
    "{hello}, the {noun} is {adjective}.",
    "{hello}, I want to {do} the {adjective} {noun} and the {noun}.",
    "{name} will {do} the {noun} with the {noun} {day}.",
    "There is one {adjective} {noun} left.",
    "{hello}, you need no {noun} for the {noun}.",
    "Please {do} the {adjective} {noun} {day}.",
    "{hello}, why is the {noun} not {adjective}?",
    "Do not {do} the {noun} without the {noun}.",
    "{hello}, we have a new {noun}, and {name} has the {noun}.",
    "I know somebody who can {do} your {noun} {day}.",
    "{hello}, {do} the {noun} before it is too late.",
)
SPAM: Lists = MappingProxyType(
    {
        "noun": _words("prize, voucher, bonus, reward, jackpot, discount, coupon, loan, holiday, phone, watch, "
                       "lottery, "
                       "cruise, cheque, ring, car, house, dress, perfume, cake, chocolate, wine, coffee, cream, diet, "
                       "casino, money, gold, silver, diamond, garden, sofa, bed, shoe, hat, camera, television, game, "
                       "toy, puppy, horoscope, hotel, beach, island, flight, insurance, bank, cash, fortune, dream, "
                       "beauty, hair, skin, party, birthday, doctor, medicine, friend, wedding, jewel, boat, "
                       "kitchen, present, trip"),
        "adjective": _words("golden, beautiful, cheap, sweet, lucky, happy, warm, romantic, luxurious, tasty, famous, "
                            "charming, young, rich, lovely, magic, sunny, wonderful, exciting, friendly"),
        "do": _words("win, buy, get, take, try, bring, love, order, see, find, enjoy, send, claim, share, open, keep"),
    }
)  # fmt: skip
HAM: Lists = MappingProxyType(
    {
        "noun": _words("module, function, class, package, parser, compiler, debugger, method, interface, script, "
                       "server, "
                       "database, decorator, iterator, interpreter, argument, keyword, attribute, variable, exception, "
                       "string, integer, tuple, dictionary, generator, coroutine, thread, process, socket, buffer, "
                       "file, directory, path, object, instance, namespace, scope, statement, expression, operator, "
                       "loop, constant, encoding, byte, codec, header, token, stack, frame, signal, lock, queue, "
                       "cache, "
                       "test, traceback, logger, handler, callback, descriptor, annotation, subclass, command, "
                       "warning, index"),
        "adjective": _words("deprecated, mutable, undefined, optional, recursive, abstract, asynchronous, empty, "
                       "nested, "
                            "local, global, invalid, positional, static, public, relative, compiled, cached, callable, "
                            "numeric"),
        "do": _words("import, call, get, take, try, return, define, override, see, find, compile, send, raise, parse, "
                     "open, keep"),
    }
)  # fmt: skip

REVIEWED: Lists = MappingProxyType(
    {
        "thing": _words("story, book, game, song, puzzle, picture, school, lesson, garden, cake, toy, house, lecture, "
                        "boat, train, hotel, library, tutorial, module, tool, program, parser, manual, editor, server, "
                        "package"),
        "part": _words("the beginning, the end, the first part, the last chapter, the price, the colour, the size, the "
                       "name, the index, the syntax, the search, the middle, the music, the second half"),
    }
)  # fmt: skip
GOOD: Lists = MappingProxyType(
    {
        "good": _words("good, great, wonderful, lovely, beautiful, friendly, kind, warm, clever, perfect, pretty, "
                       "funny, fast, useful, simple, clear, reliable, efficient, elegant, convenient, correct, "
                       "helpful, safe, complete, readable, flexible, robust, excellent, pleasant, powerful, modern"),
        "likes": _words("made me happy, saved me hours, never fails, does what it says, is a pleasure, "
                        "made us laugh, solved my problem, explains every step, keeps its promises, "
                        "gets better every day, made my work easier, is full of good ideas, makes everybody smile"),
        "praise": _words("I recommend it, I will come again, five stars, well done, a great help, I am happy with "
                         "it, worth every minute, just what I wanted, my favourite so far, I learned a lot"),
    }
)  # fmt: skip
BAD: Lists = MappingProxyType(
    {
        "bad": _words("bad, sad, terrible, boring, dirty, angry, cold, dark, stupid, broken, ugly, horrible, "
                      "slow, useless, complicated, confusing, unreliable, strange, wrong, unclear, dangerous, "
                      "incomplete, unreadable, fragile, unstable, poor, annoying, obsolete, invalid, incorrect, old"),
        "dislikes": _words("made me sad, cost me hours, fails too often, does not do what it says, is a pain, "
                           "made us cry, made my problem worse, explains nothing, breaks its promises, "
                           "gets worse every day, made my work harder, is full of mistakes, makes everybody angry"),
        "blame": _words("I cannot recommend it, never again, one star, a waste of time, no help at all, I am "
                        "sad about it, not worth a minute, not what I wanted, the worst so far, I learned nothing"),
    }
)  # fmt: skip
GOOD_PATTERNS = (
    "The {thing} is {good} and {good}.",
    "The {thing} {likes}, {praise}.",
    "I expected the {thing} to be {bad}, but it is {good}.",
    "About the {thing}: {part} is {good} and {good}.",
    "{name} says that the {thing} {likes}.",
    "The old {thing} was {bad}. This one is {good}, {praise}.",
    "{praise}: the {thing} {likes}.",
    "I saw the {thing} {day}. It {likes} and {part} is {good}.",
    "The {good} {thing} {likes}.",
    "{part} of the {thing} is {good}, {praise}.",
)
_OPPOSITE = {"good": "bad", "bad": "good", "likes": "dislikes", "praise": "blame"}
BAD_PATTERNS = tuple(
    re.sub(r"{(\w+)}", lambda slot: f"{{{_OPPOSITE.get(slot[1], slot[1])}}}", pattern) for pattern in GOOD_PATTERNS
)
