"""One JupyterLab and one browser for all browser tests."""

import pytest

from tests.browser import lab as labs


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A running JupyterLab."""
    with labs.lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    with labs.browser() as found:
        yield found


@pytest.fixture
def page(browser):
    """The browser's page; whatever a test did, nothing was asked of another host."""
    browser.foreign.clear()
    yield browser.page
    assert browser.foreign == []
