// name: compare-traces
// summary: components that only one of two traces uses, with the rank of their first edge
// params: trace STRING, other STRING, size DOUBLE = 0.001, shared BOOLEAN = false
// returns: component STRING, kind STRING, layer INTEGER, best_rank INTEGER, other_best_rank INTEGER
// stores: embedded, neo4j
MATCH (t:Trace)-[u:USES]->(c:Component)
WHERE t.id IN [$trace, $other]
  AND u.best_rank < CASE WHEN $size < 0 THEN -$size ELSE floor($size * t.n_edges) END
WITH c.name AS component, c.kind AS kind, c.layer AS layer,
     min(CASE WHEN t.id = $trace THEN u.best_rank ELSE null END) AS best_rank,
     min(CASE WHEN t.id = $other THEN u.best_rank ELSE null END) AS other_best_rank
WHERE $shared OR best_rank IS NULL OR other_best_rank IS NULL
RETURN component, kind, layer, best_rank, other_best_rank
ORDER BY coalesce(best_rank, other_best_rank), component
