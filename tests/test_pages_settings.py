"""Account and Users pages."""


def test_account_shows_the_user(open_page):
    page = open_page("settings/account.py", "reader")
    assert not page.exception
    assert page.title[0].value == "Account"


def test_a_page_without_a_signed_in_user_shows_nothing(open_page):
    page = open_page("settings/account.py", None)
    assert not page.title
    assert "Sign in" in page.info[0].value
