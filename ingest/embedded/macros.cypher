// Neo4j's names for functions that Ladybug calls otherwise, so that one query runs on both.
// No CASE in a macro: Ladybug 0.22.0 cannot read such a macro back from its log.

CREATE MACRO type(x) AS label(x);
CREATE MACRO toFloat(x) AS CAST(x AS DOUBLE);
CREATE MACRO toInteger(x) AS CAST(sign(CAST(x AS DOUBLE)) * floor(abs(CAST(x AS DOUBLE))) AS INT64);
CREATE MACRO toString(x) AS CAST(x AS STRING);
CREATE MACRO exp(x) AS pow(2.718281828459045, x);
CREATE MACRO head(x) AS list_element(x, 1);
CREATE MACRO last(x) AS list_element(x, -1);
CREATE MACRO split(x, y) AS string_split(x, y);
