"""Broker URLs: what they say, what is refused in one line, and that none shows a secret."""

import pytest

from redislink import ConfigError
from redislink.broker import Broker
from redislink.broker.url import labels, parse_url, split_urls


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no scheme"),
        ("localhost:6379", "scheme"),
        ("http://host", "unknown scheme 'http'"),
        ("redis://", "without a host"),
        ("redis://host:port", "host or port is not valid"),
        ("redis://host:99999", "host or port is not valid"),
        ("redis://[::1", "host or port is not valid"),
        ("unix://", "without a path"),
        ("unix://run/redis.sock", "with a host"),
        ("redis://host:0", "host or port is not valid"),
        ("redis://host:1:2", "host or port is not valid"),
        ("redis://[host]:1", "host or port is not valid"),
        ("redis://ho*st", "host or port is not valid"),
        ("redis://host/prod", "database that is no number"),
        ("redis://host/1/2", "database that is no number"),
        ("redis://host/1e3", "database that is no number"),
        ("redis://host/-1", "database that is no number"),
        ("redis://host/٣", "database that is no number"),
        ("redis://host?db=prod", "database that is no number"),
        ("redis+sentinel://", "without a host"),
        ("redis+sentinel://host:1,host:2", "without the name"),
        ("redis+sentinel://host:1,host:port/name", "host or port is not valid"),
        ("redis+sentinel://host:1,:2/name", "host or port is not valid"),
        ("redis+sentinel://host/name/one", "database that is no number"),
        ("redis+cluster://:s3cret@", "without a host"),
        ("redis+cluster://host:99999,host", "host or port is not valid"),
        ("redis+cluster://host/1", "has only database 0"),
        ("redis+cluster://host?db=3", "has only database 0"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Broker(url)
    assert "redis://" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("redis://user:s3cret@host:1234/2", "redis://host:1234/2"),
        ("rediss://:s3cret@host", "rediss://host:6379"),
        ("redis://[::1]:7", "redis://[::1]:7"),
        ("unix://user:s3cret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("fakeredis://name", "fakeredis://name"),
        (
            "redis+sentinel://user:s3cret@a:1,b/name/2?sentinel_password=s3cret",
            "redis+sentinel://a:1,b:26379/name/2",
        ),
        ("rediss+sentinel://:s3,cret@[::1]:7,b/name", "rediss+sentinel://[::1]:7,b:26379/name"),
        ("REDIS+cluster://:s3cret@a,b:2/0", "redis+cluster://a:6379,b:2/0"),
        ("rediss+cluster://user:s3cret@[::1]:7", "rediss+cluster://[::1]:7"),
    ],
)
def test_the_label_holds_no_secret(url, label):
    assert Broker(url).label == label


def test_what_a_url_says():
    url = parse_url("rediss+sentinel://u:p%40@a:1,b/name/2?sentinel_password=q&ssl_cert_reqs=none")
    assert url.addresses == (("a", 1), ("b", 26379))
    assert (url.master, url.database, url.tls) == ("name", 2, True)
    assert (url.user, url.password) == ("u", "p@")
    assert (url.sentinel_user, url.sentinel_password) == ("", "q")
    assert (url.checks_certificate, url.checks_name) == (False, True)
    assert url.label_at(("h", 7)) == "rediss://h:7 (master of rediss+sentinel://a:1,b:26379/name/2)"
    assert "p@" not in repr(url)
    assert "'q'" not in repr(url)
    files = parse_url("rediss://h?ssl_ca_certs=/x%20y&ssl_check_hostname=no")
    assert (dict(files.tls_files), files.checks_name) == ({"ssl_ca_certs": "/x y"}, False)
    assert parse_url("redis://BRÜCKE.example").addresses == (("xn--brcke-lva.example", 6379),)
    assert parse_url("redis://[fe80::1%25eth0]:7").addresses == (("fe80::1%eth0", 7),)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        *(("redis://h", 0), ("redis://h/", 0), ("redis://h/3", 3), ("redis://h/3/", 3)),
        *(("redis://h?db=3", 3), ("redis://h/3?db=3", 3), ("unix:///run/x.sock?db=3", 3)),
        *(("redis+sentinel://h/name?db=3", 3), ("redis+cluster://h?db=0", 0)),
    ],
)
def test_the_database_is_the_same_wherever_the_url_has_it(url, database):
    assert parse_url(url).database == database


PASSWORD = "Sup3rS3cret"


@pytest.mark.parametrize(
    "sign", ["/", "?", "#", "@", "%", " ", "\t", "\n", "\x1b", "\u202e", "%ff"]
)
@pytest.mark.parametrize("start", ["", "42", "ab"])
@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://alice:{}@broker.example:6379/0",
            "rediss://:{}@h",
            "unix://alice:{}@/run/x.sock",
        ),
        *("redis+sentinel://a:{}@h1,h2/relay", "redis+cluster://a:{}@h:1", "redis://{}:pw@h"),
        *("redis+sentinel://h/relay?sentinel_password={}", "redis://{}@h/3"),
    ],
)
def test_a_password_that_is_not_percent_encoded_is_refused_and_not_shown(url, start, sign):
    if sign == "?" and "?" in url:
        return  # it may stand there
    if sign == "/" and "?" in url:
        return
    with pytest.raises(ConfigError, match="percent-encode") as caught:
        parse_url(url.format(f"{start}{sign}{PASSWORD}"))
    for part in (PASSWORD, PASSWORD.lower(), "alice"):
        assert part not in str(caught.value)


@pytest.mark.parametrize("tail", [f"42?{PASSWORD}", f"42/{PASSWORD}", f"42?{PASSWORD}=1"])
def test_nor_is_one_in_a_url_without_a_host(tail):
    with pytest.raises(ConfigError) as caught:
        parse_url(f"redis://alice:{tail}")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        # redis-py would let each of these win over what redislink sets.
        *(("redis://h?socket_timeout=1", "socket_timeout"), ("redis://h?protocol=3", "protocol")),
        *(("redis://h?max_connections=1", "max_connections"), ("redis://h?host=evil", "an option")),
        *(
            ("redis://h?health_check_interval=1", "health_check_interval"),
            ("redis://h?x", "option"),
        ),
        *(("redis://h?password=x", "password after"), ("redis://h?username=x", "username after")),
        *(("redis://h?ssl_cert_reqs=none", "TLS has rediss://"), ("redis://h?db=1&db=2", "twice")),
        *(("rediss://h?ssl_cert_reqs=some", "not known"), ("redis://h/1?db=2", "two databases")),
        *(
            ("rediss://h?ssl_check_hostname=", "not known"),
            ("rediss://h?ssl_ciphers=NULL", "option"),
        ),
        ("redis://h?sentinel_password=x", "sentinel_password with redis://"),
        ("redis+sentinel://h/name?sentinel_ssl_cert_reqs=none", "an option"),
    ],
)
def test_only_options_that_are_known_may_stand_in_a_url(url, message):
    with pytest.raises(ConfigError, match=message):
        Broker(url)


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("redis://a", ["redis://a"]),
        (" redis://a ", ["redis://a"]),
        ("redis://a,rediss://b/1", ["redis://a", "rediss://b/1"]),
        ("redis://a\n rediss://b , unix:///c", ["redis://a", "rediss://b", "unix:///c"]),
        ("redis://a, redis://b,", ["redis://a", "redis://b"]),
        (
            "redis+sentinel://a,b:1/m,redis+sentinel://c,d/m",
            ["redis+sentinel://a,b:1/m", "redis+sentinel://c,d/m"],
        ),
        ("redis://u:p,w@a redis://u:p%20w@b", ["redis://u:p,w@a", "redis://u:p%20w@b"]),
        ("redis://a/0 redis://a/1", ["redis://a/0", "redis://a/1"]),
        ("redis+cluster://a,b", ["redis+cluster://a,b"]),
    ],
)
def test_a_setting_may_name_several_brokers(text, urls):
    assert split_urls(text) == urls


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("redis://a redis://user:secret@A:6379", "stands in the list twice"),
        ("redis://a redis+cluster://b", "redis.cluster://b:6379 cannot be one of several"),
        ("fakeredis://a redis://b", "cannot be one of several"),
        ("redis://a redis://user:se@cret@b", "must be encoded"),
        ("redis://a redis://b:secret", "host or port is not valid"),
        (" ".join(f"redis://h{n}" for n in range(17)), "17 brokers: list at most 16"),
    ],
)
def test_a_list_of_brokers_that_cannot_be_used_is_refused_without_its_passwords(text, what):
    with pytest.raises(ConfigError, match=what) as caught:
        split_urls(text)
    assert "secret" not in str(caught.value)


def test_a_space_in_a_password_is_not_the_end_of_a_url():
    with pytest.raises(ConfigError, match="must be encoded"):
        parse_url(*split_urls("redis://user:pass word@a"))


def test_labels_name_each_broker_without_its_password():
    assert labels("redis://u:secret@a, rediss://b/2") == "redis://a:6379, rediss://b:6379/2"
