"""Terms of use and citation of the data sets whose raw files bivrec reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOVIELENS_NAME = re.compile(r"(ml|movielens)-?(100k|1m|10m|20m|25m|32m|latest)", re.IGNORECASE)


@dataclass(frozen=True)
class Terms:
    """Under which terms data may be used, as a card says it."""

    source: str
    text: str
    license: str
    """An identifier that the Hub knows."""
    license_name: str | None = None
    license_link: str | None = None
    citations: tuple[str, ...] = ()
    restricted: str | None = None
    """Why the data may not be passed on freely; None: it may, or the terms are not known."""


MOVIELENS = Terms(
    source="MovieLens (GroupLens, University of Minnesota)",
    text=(
        "MovieLens may be used for research if it is acknowledged (see Citation) and no endorsement by the University "
        "of Minnesota or GroupLens is implied; commercial use needs permission. Some releases (100K, 1M) may not be "
        "redistributed without permission, others (latest) only under the same terms: the README of the release "
        "decides. Plots and posters are no part of MovieLens and belong to third parties."
    ),
    license="other",
    license_name="movielens",
    license_link="https://grouplens.org/datasets/movielens/",
    citations=(
        "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions "
        "on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872",
    ),
    restricted="MovieLens is for research, and some releases may not be redistributed without permission",
)
AMAZON = Terms(
    source="Amazon reviews (McAuley Lab, UC San Diego)",
    text=(
        "The review sets were collected for research and come without a licence of their own. Texts and images belong "
        "to their authors and to Amazon, whose conditions apply; redistribution needs their permission."
    ),
    license="other",
    license_name="amazon-reviews",
    license_link="https://amazon-reviews-2023.github.io",
    citations=(
        "2014: Julian McAuley, Christopher Targett, Qinfeng Shi and Anton van den Hengel. 2015. Image-based "
        "Recommendations on Styles and Substitutes. SIGIR. https://arxiv.org/abs/1506.04757",
        "2018: Jianmo Ni, Jiacheng Li and Julian McAuley. 2019. Justifying Recommendations using Distantly-Labeled "
        "Reviews and Fine-Grained Aspects. EMNLP. https://aclanthology.org/D19-1018",
        "2023: Yupeng Hou et al. 2024. Bridging Language and Items for Retrieval and Recommendation. "
        "https://arxiv.org/abs/2403.03952",
    ),
    restricted="Amazon's review sets are for research and give no right to redistribute texts and images",
)
TAOBAO = Terms(
    source="UserBehavior (Alibaba, Tianchi data set 649)",
    text=(
        "Alibaba gives the set out for research on recommendation; its page on Tianchi says under which licence. Read "
        "it before you pass on the data, or use it, or anything made of it, commercially."
    ),
    license="other",
    license_name="taobao-userbehavior",
    license_link="https://tianchi.aliyun.com/dataset/649",
    citations=(
        "Han Zhu et al. 2018. Learning Tree-based Deep Model for Recommender Systems. KDD. "
        "https://arxiv.org/abs/1801.02294",
    ),
    restricted="Taobao's UserBehavior is for research, under the licence of its page on Tianchi",
)
SYNTHETIC = Terms(
    source="invented by `bivrec prepare synthetic`",
    text="The data is invented: there are no terms, and no person behind a user.",
    license="apache-2.0",
)
UNKNOWN = Terms(
    source="tables of the publisher",
    text=(
        "The data is the publisher's own; its terms were not recorded. Ask the publisher before you use it, or "
        "anything made of it, for more than evaluation."
    ),
    license="unknown",
)
_BY_READER = {"movielens": MOVIELENS, "amazon": AMAZON, "taobao": TAOBAO, "synthetic": SYNTHETIC}


def terms_of(source: Mapping[str, Any] | None, name: str) -> Terms:
    """The terms of a Domain by its `source` (see DomainInfo) and name.

    Tables whose Domain has the name of a MovieLens release are taken for it: the stricter terms are the safer guess.
    Those of Domains that were merged are the terms of all of them.
    """
    if source and source.get("reader") == "merge":
        return _together([terms_of(part, part_name) for part_name, part in source["domains"].items()])
    known = _BY_READER.get(str((source or {}).get("reader")))
    if known is None and MOVIELENS_NAME.fullmatch(name):
        return MOVIELENS
    return known or UNKNOWN


def _together(parts: Sequence[Terms]) -> Terms:
    first, *others = dict.fromkeys(parts)
    if not others:
        return first
    return Terms(
        source="; ".join(terms.source for terms in (first, *others)),
        text="\n\n".join(terms.text for terms in (first, *others)),
        license="other",
        license_name="several-sources",
        citations=tuple(citation for terms in (first, *others) for citation in terms.citations),
        restricted="; ".join(terms.restricted for terms in (first, *others) if terms.restricted) or None,
    )
