from robobench.plugins.digest import code_digest
from robobench.plugins.discovery import load_attack


def test_digest_covers_components(monkeypatch):
    cls = load_attack("autoattack")
    before = code_digest(cls)
    monkeypatch.setattr(cls, "component_names", cls.component_names[:-1])
    assert code_digest(cls) != before
