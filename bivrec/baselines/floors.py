"""The floors by name: methods without training that a trained model has to beat."""

from __future__ import annotations

from bivrec.baselines.content_knn import ContentKNN
from bivrec.baselines.item_knn import ItemKNN
from bivrec.baselines.popularity import Popularity
from bivrec.baselines.spectral import spectral_vectors
from bivrec.config import CONTENT_FLOORS, FLOORS
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.ranking import Scorer

RECENT_DECAY = 0.4
SPECTRAL_SIZE = 256


def fit_floor(name: str, domain: Domain) -> Scorer:
    """A floor on the training users of a Domain. Raises BivrecError if it is unknown or the Domain lacks features."""
    if name == "popularity":
        return Popularity.fit(domain)
    decay = RECENT_DECAY if name.startswith("recent-") else 0.0
    if name in ("item-knn", "recent-item-knn"):
        return ItemKNN.fit(domain, decay=decay)
    if name in ("spectral-knn", "recent-spectral-knn"):
        return ContentKNN(spectral_vectors(domain, SPECTRAL_SIZE), decay=decay)
    if name in CONTENT_FLOORS:
        return ContentKNN.fit(domain, tuple(domain.info.features) or ("text",), decay=decay)
    raise BivrecError(f"--floor {name}: expected one of {', '.join(FLOORS)}")
