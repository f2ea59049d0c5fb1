"""What ``config render`` prints is the same configuration: read again, it gives the same settings (passwords apart)."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gapwatch.config import parse, render
from gapwatch.config.forms import seconds
from gapwatch.config.render import MASK, SECRET_OPTION, duration, mask_url
from gapwatch.core.search_address import SearchAddress
from gapwatch.model.pipeline import KeyType, Settings, StoreSpec, StoreType

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,12}", fullmatch=True)
COLUMNS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=".\x85\u2028\u2029\ufeff"), min_size=1, max_size=8
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff"), max_size=12)
DURATIONS = st.integers(1, 10**9).map(lambda ms: f"{ms}ms")
COUNTS = st.integers(2, 9_999)
TOPICS = st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True)
ACCOUNTS = st.sampled_from(["", "app@", "app:s3cret@", "app:a%40b@"])
SEARCH_STORES = st.sampled_from(
    [
        {"type": "opensearch", "hosts": ["http://127.0.0.1:9200"]},
        {
            "type": "opensearch",
            "hosts": ["https://a:9200", "https://b:9200"],
            "user": "u@:/",
            "password": "s3cret@:/?&%",
            "ca": "a b",
        },
        {
            "type": "opensearch",
            "hosts": ["https://[::1]:9200"],
            "api_key": "s3cret==&",
            "client_cert": "c.pem",
            "client_key": "k.pem",
        },
    ]
)
KEYS = st.lists(st.sampled_from([kind.value for kind in KeyType]), min_size=1, max_size=3)
TYPED: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "decimal": st.fixed_dictionaries(
        {}, optional={"scale": st.integers(0, 9), "tolerance": st.decimals(0, 10**6, places=3), "rounding": st.just("round")}
    ),
    "float": st.fixed_dictionaries({}, optional={"digits": st.integers(1, 17), "tolerance": st.floats(0, 1e9)}),
    "timestamp": st.fixed_dictionaries(
        {}, optional={"precision": st.sampled_from(["s", "ms", "us"]), "timezone": st.sampled_from(["UTC", "Europe/Vienna"])}
    ),
    "text": st.fixed_dictionaries({}, optional={"nfc": st.booleans(), "absent_is_null": st.booleans()}),
    "array": st.fixed_dictionaries({}, optional={"multiset": st.booleans()}),
}


@st.composite
def forms(draw: st.DrawFn) -> str | dict[str, Any]:
    column = draw(COLUMNS)
    kind = draw(st.sampled_from([None, *TYPED]))
    if kind is None:
        return escaped(column)
    options = {name: str(value) if isinstance(value, Decimal) else value for name, value in draw(TYPED[kind]).items()}
    return {"from": escaped(column), "type": kind, **options}


def escaped(text: str) -> str:
    return text.replace("$", "$$")


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    kinds = draw(KEYS)
    observed = draw(st.booleans())
    optional = dict.fromkeys(("disorder", "settle", "clock_skew_max", "stall_after", "lag_limit", "pulse", "slo"), DURATIONS)
    others = {
        **optional,
        "history": COUNTS,
        "suspects_max": COUNTS,
        "coverage_target": st.floats(0, 1),
        "baseline": st.sampled_from(["sweep", "assume"]),
        "evidence": st.sampled_from(["digest", "fields", "values"]),
        "enabled": st.booleans(),
        "match": st.sampled_from(["digest", "presence"]),
        "sweep": st.fixed_dictionaries(
            {},
            optional={
                "every": st.integers(10, 10**6).map(lambda s: f"{s}s"),
                "start_delay": DURATIONS,
                "load": st.floats(0.01, 1),
            },
        ),
        "repair": st.fixed_dictionaries({}, optional={"extra": st.just("delete"), "brake_ratio": st.floats(0.001, 1)}),
        "delivery": st.one_of(st.just("none"), NAMES.map(lambda group: {"group": group})),
    }
    fields = draw(st.dictionaries(COLUMNS.map(lambda path: f"f{path}"), forms(), min_size=1, max_size=4))
    feed: Any = draw(st.sampled_from([{"change_stream": True}, {"debezium": "cat.orders"}])) if observed else "none"
    target = {
        "store": "catalog",
        "collection": "shop.orders",
        "key": {f"_id.k{number}": kind for number, kind in enumerate(kinds)},
        "feed": feed,
    }
    if draw(st.booleans()):
        kinds = [draw(st.sampled_from([kind.value for kind in KeyType if kind is not KeyType.BYTES]))]
        feed = draw(st.sampled_from([{"seq_no": True}, {"acks": "done.orders"}])) if observed else "none"
        routing = draw(st.sampled_from([{}, {"routing": escaped(next(iter(fields)))}]))
        target = {"store": "search", "index": "orders", "key": {"_id": kinds[0]}, "feed": feed, **routing}
    return {
        "source": {
            "store": "shop",
            "table": "public.orders",
            "key": {f"c{number}": kind for number, kind in enumerate(kinds)},
            "feed": {"debezium": draw(TOPICS)},
        },
        "target": target,
        "fields": fields,
        "delivery": "none",
        "grace": draw(DURATIONS),
        **draw(st.fixed_dictionaries({}, optional=others)),
    }


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    options = draw(
        st.dictionaries(st.sampled_from(["sasl.password", "sasl.username", "linger.ms"]), TEXTS.map(escaped), max_size=3)
    )
    account = draw(ACCOUNTS)
    beat: Any = draw(st.sampled_from([{"auto": True, "every": "250ms"}, {"topic": "beats"}, "none", "auto", {"auto": False}]))
    return {
        "kafka": {"bootstrap_servers": "a:9092,b:9092", "options": options},
        "api": {"listen": draw(st.sampled_from(["127.0.0.1:1", "[::1]:8640", "0.0.0.0:65535"]))},
        "probes": {"listen": draw(st.sampled_from(["", "[::]:8641", "0.0.0.0:8641"]))},
        "topics": {"prefix": draw(NAMES), "partitions": draw(st.integers(1, 64))},
        "database": draw(st.sampled_from(["sqlite:///x@y.db", f"postgresql://{account}h/d?sslmode=require"])),
        "stores": {
            "shop": {"type": "postgres", "dsn": f"postgresql://{account}db:5432/shop", "heartbeat": beat},
            "catalog": {"type": "mongodb", "uri": f"mongodb://{account}a:1,b:2/?replicaSet=rs0"},
            "search": draw(SEARCH_STORES),
        },
        "pipelines": draw(st.dictionaries(NAMES, pipelines(), min_size=1, max_size=2)),
    }


def masked(store: StoreSpec) -> str:
    if store.type is not StoreType.OPENSEARCH:
        return mask_url(store.url)
    address = SearchAddress.parse(store.url)
    password, api_key = (MASK if secret else "" for secret in (address.password, address.api_key))
    return replace(address, password=password, api_key=api_key).encode()


def without_secrets(settings: Settings) -> Settings:
    stores = {name: replace(store, url=masked(store)) for name, store in settings.stores.items()}
    options = {name: MASK if SECRET_OPTION.search(name) else value for name, value in settings.kafka_options.items()}
    database = settings.database if settings.database.startswith("sqlite") else mask_url(settings.database)
    return replace(settings, stores=stores, kafka_options=options, database=database)


@examples(deadline=None, max_examples=30)
@given(files())
def test_what_is_rendered_reads_back_as_the_same_settings(tree: dict[str, Any]) -> None:
    settings = parse(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), {})
    shown = render(settings)
    assert parse(shown, {}) == without_secrets(settings)
    assert render(parse(shown, {})) == shown
    assert "s3cret" not in shown


@given(st.integers(0, 3_650 * 86_400_000))
def test_durations_are_written_exactly(milliseconds: int) -> None:
    value = milliseconds / 1000
    assert seconds(duration(value)) == value
