"""Names: the names that clients use for models, as OpenAI's clients write them and as Ollama's do."""

from __future__ import annotations

from collections.abc import Iterator

from offgrid_llama import store

from .repository_names import may_mean
from .served_model import ServedModel

__all__ = ["Names", "tagged"]

_DEFAULT_TAG = "latest"
_DEFAULT_PLACES = ("registry.ollama.ai/", "library/")


def tagged(name: str) -> str:
    """Return a name with its tag, which is "latest" where it has none."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:{_DEFAULT_TAG}"


def _canonical(name: str) -> str:
    """Return what is the same for all ways in which Ollama's clients write a name."""
    name = name.lower()
    for place in _DEFAULT_PLACES:
        name = name.removeprefix(place)
    return tagged(name)


class Names:
    """The names of a server's models.

    A model has its name and its aliases. A name that no model has is read as Ollama reads it: "latest" is the tag of a name
    without one, and case does not matter. So read, a model of the store has the names of its catalog, too. A name with a
    repository is read as llama-server reads it, and means the model with that file, if there is only one.
    """

    def __init__(self) -> None:
        self._exact: dict[str, ServedModel] = {}
        self._canonical: dict[str, ServedModel] = {}
        self._of_store: dict[str, ServedModel] = {}

    def __iter__(self) -> Iterator[str]:
        """Yield the names and aliases."""
        return iter(self._exact)

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def tagged(self) -> dict[str, ServedModel]:
        """Return the models by the names that Ollama's clients look for: with their tags, and those of Ollama's library."""
        found = {tagged(name): model for name, model in self._exact.items()}
        library = {name: model for name, model in self._of_store.items() if name not in self._canonical}
        return found | {name: model for name, model in library.items() if not name.endswith(f":{_DEFAULT_TAG}")}

    def add(self, name: str, model: ServedModel) -> None:
        """Give a model a name."""
        self._exact[name] = model
        self._index(name, model)

    def remove(self, name: str) -> None:
        """Take a name away."""
        del self._exact[name]
        self._canonical, self._of_store = {}, {}
        for each, model in self._exact.items():
            self._index(each, model)

    def _index(self, name: str, model: ServedModel) -> None:
        self._canonical.setdefault(_canonical(name), model)
        for known in _names_of_store(model):
            self._of_store.setdefault(_canonical(known), model)

    def registered(self, name: str) -> str | None:
        """Return which of the names that models were given is meant, or None."""
        if name in self._exact:
            return name
        canonical = _canonical(name)
        return next((each for each in self._exact if _canonical(each) == canonical), None)

    def find(self, name: str) -> ServedModel | None:
        """Return the model that a name means, or None."""
        found = self._exact.get(name)
        if found is None:
            canonical = _canonical(name)
            found = self._canonical.get(canonical) or self._of_store.get(canonical) or self._of_repository(name)
        return found

    def _of_repository(self, name: str) -> ServedModel | None:
        """Return the only model whose file a name such as ``ORG/REPO:QUANT`` means, or None."""
        if "/" not in name:
            return None
        models = dict.fromkeys(self._exact.values())
        found = [model for model in models if may_mean(name, model.settings.model or model.name)]
        return found[0] if len(found) == 1 else None


def _names_of_store(model: ServedModel) -> tuple[str, ...]:
    """Return the names by which the store knows the file of a model."""
    asked = (model.settings.model or model.name).casefold()
    for entry in store.catalog():
        if asked in {name.casefold() for name in (entry.name, *entry.aliases)}:
            return (entry.name, *entry.aliases)
    return ()
