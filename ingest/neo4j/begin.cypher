// A long trace is written in several transactions, under the label GraphtraceLoading, which no
// query asks for; complete.cypher makes it a Trace. What an interrupted writer left of the same
// trace is put aside for sweep.cypher; losing `owner` tells that writer, should it still be there.
// The first SET takes the lock: without it a trace that was completed just then would be removed.

MATCH (old:GraphtraceLoading {id: $id})
SET old.id = old.id
WITH old WHERE old.owner IS NOT NULL
SET old:GraphtraceDeleted, old.owner = null
REMOVE old:GraphtraceLoading
RETURN count(*) AS n;

CREATE (:GraphtraceLoading:Graphtrace {id: $id, owner: $owner, heartbeat: timestamp()})
RETURN 1 AS n;
