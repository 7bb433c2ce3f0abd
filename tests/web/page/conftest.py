"""A service and a browser for each module that looks at the page in a real Chromium."""

import pytest

from support.service_process import Process


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    from support.chromium import SHIPPED  # noqa: PLC0415 - as below

    with Process(SHIPPED, tmp_path_factory.mktemp("service")) as running:
        running.wait_for("/readyz", 200)
        yield running


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory):
    from support.chromium import chromium  # noqa: PLC0415 - needs selenium, as few tests here do

    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser, service):
    """Give the page as a first visitor sees it; in the end nothing foreign was asked."""
    one_browser.visit(service.url)
    yield one_browser
    one_browser.assert_nothing_foreign(service.url)
