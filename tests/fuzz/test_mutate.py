"""The bugs that tools/mutate.py plants can still be planted."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_bug_still_has_its_place():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    mutate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutate)
    places = {name: (ROOT / path).read_text().count(old) for name, (_, path, old, _) in mutate.BUGS.items()}
    assert set(places.values()) == {1}, places
