// name: token-dependence
// summary: tokens that the output depends on, by the edges that carry something out of their positions
// params: trace STRING, size DOUBLE = 0.001, special BOOLEAN = true
// returns: position INTEGER, token STRING, special BOOLEAN, n_edges INTEGER, share DOUBLE, best_rank INTEGER
// stores: embedded, neo4j
MATCH (t:Trace {id: $trace})
WITH t, CASE WHEN $size < 0 THEN -$size ELSE floor($size * t.n_edges) END AS k
MATCH (t)<-[:IN_TRACE]-(s:State)-[r:ATTENTION]->(:State)
WHERE r.rank < k AND ($special OR NOT s.special)
WITH k, count(r) AS total
MATCH (:Trace {id: $trace})<-[:IN_TRACE]-(s:State)-[r:ATTENTION]->(:State)
WHERE r.rank < k AND ($special OR NOT s.special)
WITH total, s.position AS position, s.token AS token, s.special AS special,
     count(r) AS n_edges, min(r.rank) AS best_rank
RETURN position, token, special, n_edges, toFloat(n_edges) / total AS share, best_rank
ORDER BY n_edges DESC, position
