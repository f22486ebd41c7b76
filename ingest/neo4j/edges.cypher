// A part of the edges of a long trace, between the states whose ids are from $low to $high. Parts are
// written side by side, so the trace's lock, which the SET takes, comes last: from there to the end
// of the transaction nobody can take the trace over. No row: it is not ours any more, and the
// writer undoes what it did.
MATCH (t:GraphtraceLoading {id: $id})
WHERE t.owner = $owner
CALL (t) {
  MATCH (t)<-[:IN_TRACE]-(s)
  WHERE $low <= s.id <= $high
  WITH s ORDER BY s.id
  RETURN collect(s) AS ss
}
CALL (ss) {
  UNWIND range(0, size($residual.rank) - 1) AS i
  WITH ss[$residual.source[i]] AS a, ss[$residual.target[i]] AS b, i
  CREATE (a)-[:RESIDUAL {
    score: $residual.score[i], rank: $residual.rank[i], first: $residual.first[i]
  }]->(b)
}
CALL (ss) {
  UNWIND range(0, size($mlp.rank) - 1) AS i
  WITH ss[$mlp.source[i]] AS a, ss[$mlp.target[i]] AS b, i
  CREATE (a)-[:MLP {score: $mlp.score[i], rank: $mlp.rank[i], first: $mlp.first[i]}]->(b)
}
CALL (ss) {
  UNWIND range(0, size($attention.rank) - 1) AS i
  WITH ss[$attention.source[i]] AS a, ss[$attention.target[i]] AS b, i
  CREATE (a)-[:ATTENTION {
    head: $attention.head[i], score: $attention.score[i], rank: $attention.rank[i],
    first: $attention.first[i]
  }]->(b)
}
SET t.heartbeat = timestamp()
WITH t WHERE t.owner = $owner
RETURN count(*) AS n;
