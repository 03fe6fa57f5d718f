"""The words of the toy's grammar; a pair of tuples holds the negative ones first, as False < True."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ADVERBS",
    "CONCESSIONS",
    "DENIALS",
    "FACTS",
    "FEELINGS",
    "GENERAL",
    "LINKS",
    "OTHERS",
    "REVERSALS",
    "TOPICS",
    "VERDICTS",
    "WISHES",
    "Part",
    "Topic",
]

Words = tuple[str, ...]
Pair = tuple[Words, Words]


@dataclass(frozen=True)
class Part:
    """Nouns, and adjectives that suit all of them."""

    nouns: Words
    adjectives: Pair


@dataclass(frozen=True)
class Topic:
    """What one kind of review talks about; `verb` is the tense that sounds right for it."""

    whole: Part
    parts: tuple[Part, ...]
    verb: str
    facts: Words


def _part(nouns: str, negative: str, positive: str) -> Part:
    return Part(tuple(nouns.split(", ")), (tuple(negative.split(", ")), tuple(positive.split(", "))))


TOPICS = (
    Topic(
        _part("film, movie, picture", "tedious, predictable, shallow", "moving, gripping, clever"),
        (
            _part("plot, script, dialogue, ending", "predictable, contrived, muddled", "clever, inventive, witty"),
            _part("acting, cast, lead actor", "wooden, lifeless, clumsy", "convincing, natural, touching"),
            _part("camera work, music, pacing", "clumsy, monotonous, lifeless", "graceful, inventive, elegant"),
        ),
        "is",
        (
            "it runs for about two hours",
            "we saw it on a Tuesday evening",
            "it is set in a small town by the sea",
            "the director also wrote the story",
        ),
    ),
    Topic(
        _part("restaurant, bistro, diner", "overpriced, unwelcoming, noisy", "welcoming, cosy, lively"),
        (
            _part("soup, dessert, main course, bread", "bland, greasy, stale", "delicious, fresh, tasty"),
            _part("service, waiter, kitchen", "careless, slow, sluggish", "attentive, prompt, generous"),
            _part("menu, wine list", "overpriced, boring, unimaginative", "varied, inventive, tempting"),
        ),
        "was",
        (
            "we sat by the window",
            "we were a party of four",
            "it is two streets away from the station",
            "we ordered the set lunch",
        ),
    ),
    Topic(
        _part("phone, device, gadget", "flimsy, unreliable, outdated", "sturdy, reliable, handy"),
        (
            _part("battery, charger, speaker", "unreliable, feeble, faulty", "reliable, powerful, efficient"),
            _part("screen, camera, keyboard", "fragile, imprecise, clumsy", "crisp, precise, responsive"),
            _part("manual, software, menu", "confusing, awkward, cluttered", "clear, helpful, tidy"),
        ),
        "is",
        (
            "it comes in black and in white",
            "I bought it in March",
            "the box also holds a cable",
            "it weighs about as much as a paperback",
        ),
    ),
    Topic(
        _part("hotel, inn, guest house", "shabby, noisy, neglected", "elegant, quiet, welcoming"),
        (
            _part("room, bathroom, lobby", "cramped, dirty, gloomy", "spacious, spotless, bright"),
            _part("staff, receptionist, concierge", "rude, careless, unhelpful", "friendly, attentive, helpful"),
            _part("breakfast, dinner, coffee", "bland, stale, cold", "delicious, fresh, tasty"),
        ),
        "was",
        (
            "we stayed for three nights",
            "our room was on the second floor",
            "there is a car park behind the building",
            "we arrived late on a Friday",
        ),
    ),
    Topic(
        _part("novel, book, story", "tedious, bloated, pretentious", "absorbing, thoughtful, suspenseful"),
        (
            _part("prose, style, translation", "dry, clumsy, pretentious", "vivid, poetic, elegant"),
            _part("hero, heroine, narrator", "flat, unconvincing, insufferable", "likeable, convincing, funny"),
            _part("opening, premise, final chapter", "muddled, trite, contrived", "clever, original, suspenseful"),
        ),
        "is",
        (
            "it has a little over three hundred pages",
            "I read it on the train",
            "it is the second part of a series",
            "the events take place in one winter",
        ),
    ),
)

GENERAL: Pair = (
    ("bad", "awful", "terrible", "poor", "disappointing", "dreadful", "mediocre", "weak", "dull", "annoying",
     "horrible", "lousy", "forgettable"),
    ("good", "great", "excellent", "impressive", "wonderful", "superb", "delightful", "remarkable",
     "outstanding", "brilliant", "terrific", "charming", "memorable"),
)  # fmt: skip

ADVERBS = ("", "", "", "very ", "really ", "quite ", "truly ", "rather ", "simply ", "consistently ", "surprisingly ")

DENIALS = ("not {} at all", "not {}", "never {}", "far from {}", "anything but {}", "hardly {}")

FEELINGS: Pair = (
    ("let me down", "left me cold", "wore out my patience", "fell short of my hopes", "never won me over",
     "failed to impress me", "was a step back", "was not worth the wait"),
    ("won me over", "made me smile more than once", "exceeded my hopes", "lived up to its promise",
     "impressed me from the start", "never let me down", "never wore out my patience", "was worth the wait"),
)  # fmt: skip

VERDICTS: Pair = (
    ("a failure", "a mess", "a letdown", "a waste of time", "a chore", "a disaster", "an insult", "a mistake"),
    ("a success", "a triumph", "a pleasure", "a treat", "a delight", "a bargain", "a joy", "a gem"),
)

WISHES: Pair = (
    ("I would not recommend it to anyone", "I would never pay for it again", "it is not worth the money",
     "I could not find anything to praise", "save your money", "I want my afternoon back",
     "there must be something better for the price", "once was more than enough"),
    ("I would recommend it to anyone", "I would gladly pay for it again", "it is worth every penny",
     "I could not find anything to complain about", "do not miss it", "it made my whole afternoon",
     "there is nothing better for the price", "once was not enough"),
)  # fmt: skip

LINKS: Pair = (
    (" and ", ", and ", "; ", " and worst of all "),
    (" and ", ", and ", "; ", " and best of all "),
)

CONCESSIONS = ("although", "even though", "though", "while")

REVERSALS = ("but", "yet", "but in the end", "but overall")

OTHERS = ("my friends", "the critics", "most reviewers", "my neighbours", "the advertisements", "some people")

FACTS = (
    "a colleague had told me about it",
    "I had read a few reviews before",
    "it was a rainy weekend",
    "my sister came along",
    "this was my first time",
)
