"""The sample warehouse: a web shop with four years of orders, for a hub that has no warehouse configured yet.

Pure SQL over range() and hash(), so that two builds hold the same rows. Every random choice is `u(row, salt)`, a
number in [0, 1) that depends on nothing else. The history ends at a fixed day, not today: a demonstration does not
change under the person who gives it. A handful of defects is on purpose, so that a data-quality notebook finds
something: missing and malformed e-mails, duplicated customers, impossible birth dates, mixed-case countries, negative
quantities, shipments before their order, a product without a price.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from marimohub.snapshots.errors import NoSpace, SnapshotError
from marimohub.snapshots.transfer import fsync_folder

# hash(i, salt) would not do: it combines by XOR, so that all choices for one row would be tied to each other.
_MACROS = """
CREATE TEMP MACRO u(i, salt) AS (hash(i::BIGINT * 1000 + salt) >> 11)::DOUBLE / 9007199254740992.0;
CREATE TEMP MACRO pick(list, x) AS list[1 + floor(x * len(list))::INTEGER];
CREATE TEMP MACRO day_of(base, days) AS base::DATE + days::INTEGER;
CREATE TEMP MACRO first_day() AS DATE '2022-07-01';
CREATE TEMP MACRO last_day() AS DATE '2026-06-30';
CREATE TEMP MACRO n_customers() AS 8000;
CREATE TEMP MACRO n_products() AS 240;
CREATE TEMP MACRO n_orders() AS 220000;
CREATE TEMP MACRO n_tickets() AS 18000;
"""

_SCHEMAS = """
CREATE SCHEMA sales;
CREATE SCHEMA support;
CREATE SCHEMA analytics;
"""

# Weight of each day: growth over the years, summer dip, November and December peak, quiet Sundays. Integers, so that
# the running sum is exact.
_CALENDAR = """
CREATE TEMP TABLE calendar AS
WITH days AS (
    SELECT i, day_of(first_day(), i) AS day FROM range(date_diff('day', first_day(), last_day()) + 1) t(i)
), weighted AS (
    SELECT day,
        (1000 + i)
        * [85, 82, 95, 98, 104, 96, 84, 80, 98, 106, 138, 150][month(day)]
        * [78, 104, 106, 102, 100, 112, 98][1 + dayofweek(day)]
        * CASE WHEN month(day) = 11 AND day(day) BETWEEN 23 AND 29 THEN 2 ELSE 1 END AS weight
    FROM days
)
SELECT day, sum(weight) OVER (ORDER BY day) - weight AS first, sum(weight) OVER () AS total FROM weighted;
"""

_CUSTOMERS = """
CREATE TABLE sales.customers AS
WITH names AS (
    SELECT i,
        pick(['Anna','Ben','Carla','David','Elif','Felix','Greta','Hugo','Ines','Jonas','Katja','Liam','Maya','Noah',
              'Olivia','Pavel','Quentin','Rosa','Samir','Tara','Uma','Viktor','Wendy','Xenia','Yusuf','Zoe','Aiko',
              'Bruno','Chloe','Diego','Emma','Fatima','Giulia','Hannah','Ivan','Julia','Kenji','Lucia','Marta',
              'Nina'], u(i, 1)) AS first_name,
        pick(['Smith','Mueller','Rossi','Dubois','Garcia','Nowak','Jensen','Silva','Kowalski','Schmidt','Brown',
              'Tanaka','Ivanova','Martin','Lopez','Weber','Jones','Moreau','Fischer','Costa','Andersson','Novak',
              'Taylor','Bianchi','Meyer','Hernandez','Wilson','Laurent','Becker','Santos','Larsen','Yilmaz','Walker',
              'Romano','Wagner','Petrov','Murphy','Sato','Haas','Kim'], u(i, 2)) AS last_name,
        u(i, 3) AS where_from
    FROM range(1, n_customers() + 1) t(i)
), placed AS (
    SELECT *, CASE
        WHEN where_from < 0.27 THEN 'DE' WHEN where_from < 0.45 THEN 'US' WHEN where_from < 0.58 THEN 'GB'
        WHEN where_from < 0.69 THEN 'FR' WHEN where_from < 0.77 THEN 'NL' WHEN where_from < 0.84 THEN 'ES'
        WHEN where_from < 0.90 THEN 'IT' WHEN where_from < 0.95 THEN 'PL' WHEN where_from < 0.98 THEN 'SE'
        ELSE 'JP' END AS country
    FROM names
)
SELECT i AS customer_id,
    first_name || ' ' || last_name AS name,
    CASE WHEN i % 67 = 0 THEN NULL
         WHEN i % 641 = 0 THEN lower(first_name) || '(at)example.com'
         -- A few accounts share an address with the one before.
         WHEN i % 613 = 1 AND i > 613 THEN lag(lower(first_name || '.' || last_name) || i, 1) OVER (ORDER BY i)
              || '@' || pick(['example.com', 'example.org', 'example.net'], u(i - 1, 4))
         ELSE lower(first_name || '.' || last_name) || i || '@'
              || pick(['example.com', 'example.org', 'example.net'], u(i, 4)) END AS email,
    CASE WHEN u(i, 5) < 0.06 THEN NULL ELSE CASE country
        WHEN 'DE' THEN '+49' WHEN 'US' THEN '+1' WHEN 'GB' THEN '+44' WHEN 'FR' THEN '+33' WHEN 'NL' THEN '+31'
        WHEN 'ES' THEN '+34' WHEN 'IT' THEN '+39' WHEN 'PL' THEN '+48' WHEN 'SE' THEN '+46' ELSE '+81' END
        || ' 555 ' || lpad(floor(u(i, 6) * 10000000)::INTEGER::VARCHAR, 7, '0') END AS phone,
    CASE WHEN i % 397 = 0 THEN lower(country) WHEN u(i, 7) < 0.01 THEN NULL ELSE country END AS country,
    CASE country
        WHEN 'DE' THEN pick(['Berlin', 'Hamburg', 'Munich', 'Cologne', 'Leipzig'], u(i, 8))
        WHEN 'US' THEN pick(['New York', 'Austin', 'Seattle', 'Chicago', 'Boston'], u(i, 8))
        WHEN 'GB' THEN pick(['London', 'Leeds', 'Bristol', 'Glasgow'], u(i, 8))
        WHEN 'FR' THEN pick(['Paris', 'Lyon', 'Lille', 'Nantes'], u(i, 8))
        WHEN 'NL' THEN pick(['Amsterdam', 'Utrecht', 'Rotterdam'], u(i, 8))
        WHEN 'ES' THEN pick(['Madrid', 'Barcelona', 'Valencia'], u(i, 8))
        WHEN 'IT' THEN pick(['Milan', 'Rome', 'Turin'], u(i, 8))
        WHEN 'PL' THEN pick(['Warsaw', 'Krakow', 'Gdansk'], u(i, 8))
        WHEN 'SE' THEN pick(['Stockholm', 'Malmo'], u(i, 8)) ELSE pick(['Tokyo', 'Osaka'], u(i, 8)) END AS city,
    CASE WHEN i % 2003 = 0 THEN DATE '1900-01-01' WHEN i % 2477 = 0 THEN DATE '2031-05-05'
         WHEN u(i, 9) < 0.12 THEN NULL
         ELSE day_of('1950-01-01', floor((u(i, 10) + u(i, 11)) / 2 * 20500)) END AS birth_date,
    CASE WHEN u(i, 12) < 0.78 THEN 'consumer' WHEN u(i, 12) < 0.95 THEN 'business' ELSE 'enterprise' END AS segment,
    -- Numbered in the order of signing up; a third was there when the history begins.
    day_of(first_day(), floor(greatest(0, (i / n_customers() - 0.33) / 0.67) * 1440)) AS signup_date,
    u(i, 13) < 0.41 AS marketing_opt_in
FROM placed ORDER BY i;
"""

_PRODUCTS = """
CREATE TABLE sales.products AS
WITH base AS (
    SELECT i, pick(['Kitchen', 'Office', 'Outdoor', 'Audio', 'Lighting', 'Garden', 'Travel', 'Fitness'],
                   (i % 8) / 8.0) AS category
    FROM range(1, n_products() + 1) t(i)
), priced AS (
    SELECT *, (CASE category
        WHEN 'Audio' THEN 39 WHEN 'Office' THEN 19 WHEN 'Outdoor' THEN 29 WHEN 'Fitness' THEN 24 WHEN 'Travel' THEN 34
        WHEN 'Kitchen' THEN 14 WHEN 'Garden' THEN 12 ELSE 17 END
        + floor(u(i, 21) * u(i, 22) * 180))::DECIMAL(10, 2) + 0.99 AS price
    FROM base
)
SELECT i AS product_id,
    upper(category[:3]) || '-' || lpad(i::VARCHAR, 4, '0') AS sku,
    pick(['Nordic', 'Classic', 'Compact', 'Studio', 'Urban', 'Alpine', 'Prime', 'Eco', 'Mono', 'Flex'], u(i, 23))
        || ' ' || CASE category
        WHEN 'Kitchen' THEN pick(['Kettle', 'Knife Set', 'Pan', 'Grinder'], u(i, 24))
        WHEN 'Office' THEN pick(['Desk Mat', 'Notebook', 'Chair', 'Organizer'], u(i, 24))
        WHEN 'Outdoor' THEN pick(['Tent', 'Lantern', 'Hammock', 'Stove'], u(i, 24))
        WHEN 'Audio' THEN pick(['Headphones', 'Speaker', 'Microphone', 'Earbuds'], u(i, 24))
        WHEN 'Lighting' THEN pick(['Lamp', 'Light Strip', 'Spotlight', 'Bulb Set'], u(i, 24))
        WHEN 'Garden' THEN pick(['Planter', 'Hose', 'Shears', 'Bench'], u(i, 24))
        WHEN 'Travel' THEN pick(['Backpack', 'Suitcase', 'Pillow', 'Adapter'], u(i, 24))
        ELSE pick(['Yoga Mat', 'Dumbbell', 'Rope', 'Bottle'], u(i, 24)) END AS name,
    category,
    CASE WHEN i = 137 THEN 0.00 ELSE price END::DECIMAL(10, 2) AS unit_price,
    (price * (0.45 + 0.01 * floor(u(i, 25) * 25))::DECIMAL(4, 2))::DECIMAL(10, 2) AS unit_cost,
    CASE WHEN i % 53 = 0 THEN NULL ELSE (0.1 + floor(u(i, 26) * 80) / 10)::DECIMAL(5, 1) END AS weight_kg,
    u(i, 27) < 0.93 AS active
FROM priced ORDER BY i;
"""

# A customer orders only after signing up: the number of those who had is a prefix of the customer numbers. Some
# customers order much more often than others: for 45 % the smaller of two numbers decides.
_ORDERS = """
CREATE TABLE sales.orders AS
WITH drawn AS (
    SELECT i, floor((i + u(i, 31)) / n_orders() * (SELECT any_value(total) FROM calendar))::HUGEINT AS position
    FROM range(n_orders()) t(i)
), dated AS (
    SELECT i, day FROM drawn ASOF JOIN calendar ON drawn.position >= calendar.first
), signed AS (
    SELECT day, count(*) AS known
    FROM (SELECT DISTINCT day FROM calendar) d JOIN sales.customers c ON c.signup_date <= d.day GROUP BY day
), assigned AS (
    SELECT i, day, 1 + floor(known
        * CASE WHEN u(i, 32) < 0.45 THEN least(u(i, 33), u(i, 34)) ELSE u(i, 35) END)::BIGINT AS customer_id
    FROM dated JOIN signed USING (day)
), timed AS (
    SELECT *, day::TIMESTAMP + to_seconds(floor(28800 + (u(i, 36) + u(i, 37)) / 2 * 50400)::BIGINT) AS ordered_at
    FROM assigned
)
SELECT i + 1 AS order_id, customer_id, ordered_at,
    CASE WHEN i % 20011 = 7 THEN 'Complete'
         WHEN day > last_day() - 6 THEN CASE WHEN u(i, 38) < 0.5 THEN 'pending' ELSE 'shipped' END
         WHEN u(i, 38) < 0.905 THEN 'completed' WHEN u(i, 38) < 0.955 THEN 'returned' ELSE 'cancelled' END AS status,
    CASE WHEN u(i, 39) < 0.52 THEN 'web' WHEN u(i, 39) < 0.84 THEN 'app' WHEN u(i, 39) < 0.95 THEN 'marketplace'
         ELSE 'phone' END AS channel,
    CASE WHEN u(i, 40) < 0.8 THEN 0 ELSE 5 * (1 + floor(u(i, 41) * 4)) END::INTEGER AS discount_percent,
    CASE WHEN u(i, 42) < 0.55 THEN 0 ELSE 4.90 END::DECIMAL(6, 2) AS shipping_fee,
    CASE WHEN u(i, 38) >= 0.955 OR day > last_day() - 6 AND u(i, 38) < 0.5 THEN NULL
         WHEN i % 9001 = 5 THEN ordered_at - to_days(2)
         ELSE ordered_at + to_hours(6 + floor(u(i, 43) * u(i, 44) * 120)::BIGINT) END AS shipped_at
FROM timed ORDER BY i;
"""

_ORDER_ITEMS = """
CREATE TABLE sales.order_items AS
WITH lines AS (
    SELECT order_id, unnest(range(1, 2 + floor(u(order_id, 51) * u(order_id, 52) * 7)::BIGINT)) AS line
    FROM sales.orders
), chosen AS (
    SELECT *, order_id * 16 + line AS i FROM lines
), priced AS (
    SELECT *, 1 + floor(CASE WHEN u(i, 53) < 0.5 THEN u(i, 54) * u(i, 55) ELSE u(i, 54) END * n_products())::BIGINT
        AS product_id
    FROM chosen
)
SELECT order_id, line::INTEGER AS line, product_id,
    CASE WHEN i % 49999 = 11 THEN -1 WHEN u(i, 56) < 0.74 THEN 1 ELSE 1 + floor(u(i, 57) * 5) END::INTEGER AS quantity,
    unit_price
FROM priced JOIN sales.products USING (product_id) ORDER BY order_id, line;
"""

_TICKETS = """
CREATE TABLE support.support_tickets AS
WITH numbered AS (
    SELECT i, 1 + floor(u(i, 61) * n_orders())::BIGINT AS order_id FROM range(1, n_tickets() + 1) t(i)
), opened AS (
    SELECT i, order_id, customer_id, ordered_at + to_hours(4 + floor(u(i, 62) * u(i, 63) * 900)::BIGINT) AS opened_at
    FROM numbered JOIN sales.orders USING (order_id)
), sorted AS (
    SELECT row_number() OVER (ORDER BY opened_at, i) AS ticket_id, *
    FROM opened WHERE opened_at < last_day() + 1
)
SELECT ticket_id, customer_id, CASE WHEN u(i, 64) < 0.2 THEN NULL ELSE order_id END AS order_id, opened_at,
    CASE WHEN u(i, 65) < 0.31 THEN 'delivery' WHEN u(i, 65) < 0.55 THEN 'return' WHEN u(i, 65) < 0.73 THEN 'payment'
         WHEN u(i, 65) < 0.91 THEN 'product' ELSE 'account' END AS topic,
    CASE WHEN u(i, 66) < 0.6 THEN 'normal' WHEN u(i, 66) < 0.88 THEN 'low' WHEN u(i, 66) < 0.98 THEN 'high'
         ELSE 'urgent' END AS priority,
    CASE WHEN opened_at > last_day() - 5 AND u(i, 67) < 0.6 THEN 'open' ELSE 'closed' END AS status,
    CASE WHEN opened_at > last_day() - 5 AND u(i, 67) < 0.6 THEN NULL
         ELSE opened_at + to_minutes(20 + floor(u(i, 68) * u(i, 69) * 5000)::BIGINT) END AS closed_at,
    CASE WHEN u(i, 70) < 0.45 THEN NULL
         ELSE least(5, 1 + floor((0.35 + 0.65 * u(i, 71)) * 5)) END::INTEGER AS satisfaction,
    pick(['Where is my parcel?', 'The item arrived damaged.', 'I was charged twice.', 'Please cancel my order.',
          'How do I return this?', 'The colour is not the one I chose.', 'I cannot sign in.',
          'Can I change the address?', 'The invoice is missing.', 'A part is missing.'], u(i, 72)) AS subject
FROM sorted ORDER BY ticket_id;
"""

_VIEWS = """
CREATE VIEW analytics.monthly_revenue AS
SELECT date_trunc('month', o.ordered_at)::DATE AS month, upper(c.country) AS country, p.category,
    count(DISTINCT o.order_id) AS orders, sum(i.quantity) AS units,
    (sum(i.quantity * i.unit_price * (100 - o.discount_percent)) / 100)::DECIMAL(14, 2) AS revenue
FROM sales.orders o
JOIN sales.order_items i USING (order_id)
JOIN sales.products p USING (product_id)
JOIN sales.customers c USING (customer_id)
WHERE o.status <> 'cancelled'
GROUP BY ALL;

CREATE VIEW analytics.customer_value AS
SELECT c.customer_id, c.segment, upper(c.country) AS country, c.signup_date,
    count(DISTINCT o.order_id) AS orders, max(o.ordered_at) AS last_order_at,
    (coalesce(sum(i.quantity * i.unit_price * (100 - o.discount_percent)), 0) / 100)::DECIMAL(14, 2) AS revenue
FROM sales.customers c
LEFT JOIN sales.orders o ON o.customer_id = c.customer_id AND o.status <> 'cancelled'
LEFT JOIN sales.order_items i USING (order_id)
GROUP BY ALL;

CREATE VIEW analytics.ticket_load AS
SELECT date_trunc('week', opened_at)::DATE AS week, topic, count(*) AS tickets,
    avg(date_diff('minute', opened_at, closed_at)) / 60 AS hours_to_close, avg(satisfaction) AS satisfaction
FROM support.support_tickets
GROUP BY ALL;

COMMENT ON TABLE sales.customers IS 'One row per registered customer. Personal data.';
COMMENT ON TABLE sales.orders IS 'One row per order, from 2022-07-01 to 2026-06-30.';
COMMENT ON TABLE sales.order_items IS 'The lines of the orders, with the price at the time.';
COMMENT ON TABLE sales.products IS 'What the shop sells.';
COMMENT ON TABLE support.support_tickets IS 'What customers asked the support for.';
"""

_TABLES = (
    ("sales.customers", _CUSTOMERS),
    ("sales.products", _PRODUCTS),
    ("sales.orders", _ORDERS),
    ("sales.order_items", _ORDER_ITEMS),
    ("support.support_tickets", _TICKETS),
)


def build(path: Path | str, progress: Callable[[str], None]) -> dict[str, int]:
    """Build the sample warehouse at `path` (replaced by a rename when finished); takes seconds.

    `progress` gets a line per table. Returns the number of rows per table. Raises SnapshotError; then nothing is left.
    """
    import duckdb

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    rows: dict[str, int] = {}
    try:
        with duckdb.connect(str(temporary)) as connection:
            for prelude in (_MACROS, _SCHEMAS, _CALENDAR):
                connection.execute(prelude)
            for number, (name, statement) in enumerate(_TABLES, 1):
                connection.execute(statement)
                found = connection.execute(f"SELECT count(*) FROM {name}").fetchone()
                assert found is not None
                rows[name] = found[0]
                progress(f"Sample warehouse {number}/{len(_TABLES)}: {name}, {rows[name]:,} rows")
            connection.execute(_VIEWS)
            connection.execute("CHECKPOINT")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o600)
        os.replace(temporary, target)
        fsync_folder(str(target.parent))
    except (OSError, duckdb.Error) as error:
        text = str(error).splitlines()[0]
        if "No space left" in text or "File too large" in text or "quota exceeded" in text:
            raise NoSpace(f"There is no room for the sample warehouse in {target.parent}. Make room there.") from error
        raise SnapshotError(f"The sample warehouse could not be built at {target}: {text}") from error
    finally:
        for suffix in ("", ".wal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{temporary}{suffix}")
    return rows
