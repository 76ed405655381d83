"""Which tests share a worker when pytest runs them side by side (pytest-xdist)."""

import pytest

# Long ones first: what is left at the end should be short.
FILES = ["test_splits.py", "test_reference.py", "test_tokenizers.py", "test_chat_templates.py"]
# Tests of one model that compare the same runs. Another worker would make these runs again.
SHARING = ["test_logits", "test_perplexity", "test_tensor_split_agrees"]


def shared(nodeid):
    """The name under which the test shares a worker with others."""
    if any(f"::{name}" in nodeid for name in SHARING):
        return "gemma3" if "[gemma3" in nodeid else "smollm2"
    return nodeid


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FILES.index(item.path.name) if item.path.name in FILES else -1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return shared(nodeid)

    return Scheduling(config, log)
