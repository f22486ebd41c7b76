// name: entering
// summary: which components enter a trace at each size of its curve
// params: trace STRING
// returns: size DOUBLE, n_edges INTEGER, tv DOUBLE, component STRING, best_rank INTEGER
// stores: embedded, neo4j
MATCH (t:Trace {id: $trace})-[u:USES]->(x:Component)
MATCH (t)-[:AT]->(c:Checkpoint)
WHERE c.curve = 0 AND u.best_rank < c.n_edges
WITH t, x.name AS component, u.best_rank AS best_rank, min(c.n_edges) AS n_edges
MATCH (t)-[:AT]->(c:Checkpoint)
WHERE c.curve = 0 AND c.n_edges = n_edges
WITH component, best_rank, n_edges, min(c.size) AS size, min(c.tv) AS tv
RETURN size, n_edges, tv, component, best_rank
ORDER BY best_rank
