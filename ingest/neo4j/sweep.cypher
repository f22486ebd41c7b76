// Removes what was hidden, in parts of $n: run until nothing is left. First edges, then states,
// then the nodes that stood for the traces.

MATCH (:GraphtraceDeleted)<-[:IN_TRACE]-(s)-[r:RESIDUAL|MLP|ATTENTION]->()
WITH r LIMIT $n DELETE r
RETURN count(*) AS n;

MATCH (:GraphtraceDeleted)<-[:IN_TRACE]-(s)
WITH s LIMIT $n DETACH DELETE s
RETURN count(*) AS n;

MATCH (t:GraphtraceDeleted)
WHERE NOT EXISTS { MATCH (t)<-[:IN_TRACE]-() }
WITH t LIMIT $n DETACH DELETE t
RETURN count(*) AS n;
