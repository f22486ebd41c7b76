// name: trace-edges
// summary: the edges of one trace in rank order
// params: trace STRING, size DOUBLE = 0.001
// returns: rank INTEGER, component STRING, source_level INTEGER, source_position INTEGER, source_token STRING, target_level INTEGER, target_position INTEGER, target_token STRING, score DOUBLE, first BOOLEAN
// stores: embedded, neo4j
MATCH (t:Trace {id: $trace})
WITH t, CASE WHEN $size < 0 THEN -$size ELSE floor($size * t.n_edges) END AS k
MATCH (t)<-[:IN_TRACE]-(b:State)<-[r:RESIDUAL|MLP|ATTENTION]-(a:State)
WHERE r.rank < k
RETURN r.rank AS rank,
       'L' + toString(b.layer) + CASE type(r) WHEN 'ATTENTION' THEN 'H' + toString(r.head) WHEN 'MLP' THEN '.mlp' ELSE CASE b.site WHEN 'attention' THEN '.resid_mid' ELSE '.resid_post' END END AS component,
       a.level AS source_level, a.position AS source_position, a.token AS source_token,
       b.level AS target_level, b.position AS target_position, b.token AS target_token,
       r.score AS score, coalesce(r.first, false) AS first
ORDER BY rank
