"""The pictures that a prompt asks for."""

from __future__ import annotations

import re
from dataclasses import replace

from pyro_mvae.data.images import Data, Split


def words_of(text: str) -> set[str]:
    """The words of a text, in small letters.

    Example:
        >>> sorted(words_of("Red-heart: love!"))
        ['heart', 'love', 'red']
    """
    return set(re.findall(r"\w+", text.lower()))


def matching(data: Data, prompt: str) -> Data:
    """The images whose caption and tags have every word of a prompt, of the training and of the test images.

    Raises:
        ValueError: for data without captions, a prompt without words, or one that fewer than two training images match.

    Example:
        >>> from pyro_mvae.data import load_data
        >>> len(matching(load_data("emoji"), "red heart").train) > 1
        True
    """
    wanted = words_of(prompt)
    if not wanted:
        raise ValueError(f"the prompt is {prompt!r}, expected a word or more")
    if data.train.captions is None and data.train.tags is None:
        raise ValueError(f"{data.name} has no captions to match a prompt with: use emoji, or shards with captions")
    train, test = (chosen(split, wanted) for split in (data.train, data.test))
    if len(train) < 2:
        raise ValueError(f"{len(train)} training images of {data.name} match {prompt!r}, expected 2 or more: use fewer words")
    return replace(data, name=f"{data.name}, {prompt!r}", train=train, test=test)


def chosen(split: Split, wanted: set[str]) -> Split:
    """What of a split has all the words."""
    captions, tags = split.captions or ("",) * len(split), split.tags or ((),) * len(split)
    texts = (" ".join([caption, *own]) for caption, own in zip(captions, tags, strict=True))
    places = [i for i, text in enumerate(texts) if wanted <= words_of(text)]
    return Split(
        split.images[places],
        labels=None if split.labels is None else split.labels[places],
        captions=None if split.captions is None else tuple(split.captions[i] for i in places),
        tags=None if split.tags is None else tuple(split.tags[i] for i in places),
    )
