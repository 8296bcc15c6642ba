-- What applications ask of a database, in memory. SCALE is replaced by a number.
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER, kind INTEGER);
WITH RECURSIVE counter (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 2000 * SCALE)
INSERT INTO item SELECT n, printf('item-%d', n * 7919 % 65537), n * 48271 % 10007, n * 31 % 97 FROM counter;
CREATE INDEX by_price ON item (price);
CREATE INDEX by_name ON item (name);
SELECT count(*), sum(price), min(name), max(name) FROM item;
SELECT kind, count(*), sum(price) FROM item GROUP BY kind ORDER BY sum(price) DESC LIMIT 5;
SELECT sum(left.price * right.kind) FROM item AS left JOIN item AS right ON right.id = left.price + 1;
UPDATE item SET price = price + length(name) WHERE kind % 3 = 0;
SELECT count(*) FROM item WHERE name LIKE '%77%';
SELECT sum(running) FROM (SELECT sum(price) OVER (PARTITION BY kind ORDER BY id) AS running FROM item);
SELECT group_concat(name) FROM (SELECT name FROM item WHERE price BETWEEN 100 AND 110 ORDER BY name, id LIMIT 20);
DELETE FROM item WHERE id IN (SELECT id FROM item ORDER BY price, id LIMIT 500 * SCALE);
SELECT count(*), sum(id), sum(price) FROM item;
