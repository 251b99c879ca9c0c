"""What changes the traffic log in Redis, as Lua: each script happens whole or not at all, for readers and in the
append-only file alike.

Keys, all under `traffic:`

    predictions   stream, id SEQ-0: fields i (prediction id), e (endpoint), r (routing hash); group `join`: the watermark
    labelled      stream, id SEQ-0: fields i, r (revision), m (rows); one group per reader: its place
    p:ID          hash, one prediction with all that hangs on it: seq, n, ms, closes, record, changes, mature, scores, ...;
                  `revision` once it is closed; before the prediction is written only parked feedback and scores
    ids           sorted set of the ids of all written predictions, which sort by time
    unscored, late, parked, orphans   sorted sets of ids: by seq; by when to look again; feedback and scores without a
                  prediction
    counters, forgotten, format

The rules are not here: `redis` reads a prediction, asks `feedback` and `join`, and sends what they say together with the
`version` that it read; a script leaves alone a prediction that has changed since, and says so.
"""

from __future__ import annotations

__all__ = ["CLAMP", "FEEDBACK", "FORGET", "INSERT", "OPEN", "PLACE", "PREFIX", "RETAIN", "SCORES", "SETTLE"]

PREFIX = "traffic:"

OPEN = """
local found = redis.call('GET', 'traffic:format')
if found then return found end
if redis.call('DBSIZE') > 0 then return 'foreign' end
redis.call('SET', 'traffic:format', ARGV[1])
redis.call('XGROUP', 'CREATE', 'traffic:predictions', 'join', '0', 'MKSTREAM')
redis.call('XADD', 'traffic:labelled', '0-1', 'i', '')
redis.call('XDEL', 'traffic:labelled', '0-1')
return ARGV[1]
"""
"""Args: format. Returns the format found or made, or `foreign`."""

_REMOVE = """
local function remove(id)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'seq', 'revision', 'fed', 'entries', 'waiting')
  local labelled = 0
  for seq in string.gmatch(at[4] or '', '%d+') do
    labelled = labelled + redis.call('XDEL', 'traffic:labelled', seq .. '-0')
  end
  if at[1] then
    redis.call('XDEL', 'traffic:predictions', at[1] .. '-0')
    if not at[2] then redis.call('HINCRBY', 'traffic:counters', 'open', -1) end
  end
  if at[5] then redis.call('HINCRBY', 'traffic:counters', 'parked', -at[5]) end
  redis.call('DEL', key)
  for _, set in ipairs({'ids', 'unscored', 'late', 'parked', 'orphans'}) do redis.call('ZREM', 'traffic:' .. set, id) end
  return tonumber(at[3] or '0'), labelled
end
"""

INSERT = (
    _REMOVE
    + """
local changed = {}
for i = 1, #ARGV, 11 do
  local id, version, n, ms, closes, routing, endpoint, record, changes, fed, refused = unpack(ARGV, i, i + 10)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'seq', 'version', 'waiting', 'scores')
  local forgotten = redis.call('HGET', 'traffic:forgotten', routing)
  if at[1] then
    -- written before
  elseif (at[2] or '0') ~= version then
    changed[#changed + 1] = id
  elseif forgotten and tonumber(ms) <= tonumber(forgotten) then
    remove(id)
  else
    local seq = string.format('%d', redis.call('HINCRBY', 'traffic:counters', 'predictions', 1))
    redis.call('HINCRBY', 'traffic:counters', 'open', 1)
    redis.call('XADD', 'traffic:predictions', seq .. '-0', 'i', id, 'e', endpoint, 'r', routing)
    redis.call('ZADD', 'traffic:ids', 0, id)
    redis.call('HSET', key, 'seq', seq, 'n', n, 'ms', ms, 'closes', closes, 'record', record)
    redis.call('HINCRBY', key, 'version', 1)
    if at[4] then redis.call('ZREM', 'traffic:orphans', id) else redis.call('ZADD', 'traffic:unscored', seq, id) end
    if at[3] then
      redis.call('HINCRBY', 'traffic:counters', 'parked', -at[3])
      redis.call('HINCRBY', 'traffic:counters', 'parked_refused', refused)
      redis.call('HSET', key, 'changes', changes, 'fed', fed)
      redis.call('HDEL', key, 'parked', 'waiting')
      redis.call('ZREM', 'traffic:parked', id)
    end
  end
end
return changed
"""
)
"""Per prediction: id, version, n, ms, closes, routing hash, endpoint, record; and of parked feedback: changes, how many,
parts refused. Returns the ids that have changed since they were read."""

FEEDBACK = """
local changed = {}
for i = 1, #ARGV, 6 do
  local id, version, place, said, closes, entries = unpack(ARGV, i, i + 5)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'version', 'seq', 'revision', place)
  if (at[1] or '0') ~= version or (place == 'changes') ~= (at[2] ~= false) then
    changed[#changed + 1] = id
  else
    redis.call('HINCRBY', key, 'version', 1)
    redis.call('HSET', key, place, (at[4] or '') .. said)
    redis.call('HINCRBY', 'traffic:counters', 'feedback', entries)
    if place == 'parked' then
      redis.call('HINCRBY', key, 'waiting', entries)
      redis.call('HINCRBY', 'traffic:counters', 'parked', entries)
      redis.call('ZADD', 'traffic:parked', 0, id)
    else
      redis.call('HINCRBY', key, 'fed', entries)
      if at[3] then redis.call('ZADD', 'traffic:late', 0, id) else redis.call('HSET', key, 'closes', closes) end
    end
  end
end
return changed
"""
"""Per prediction: id, version, `changes` or `parked`, what to add there, when it closes now, how many entries it was.
Returns the ids that have changed since they were read."""

SCORES = """
for i = 1, #ARGV, 3 do
  local id, field, scores = unpack(ARGV, i, i + 2)
  local key = 'traffic:p:' .. id
  if redis.call('HEXISTS', key, field) == 0 then
    local order = redis.call('HINCRBY', key, 'scores', 1)
    redis.call('HSET', key, field, string.format('%08d', order) .. scores)
    if redis.call('HEXISTS', key, 'seq') == 1 then
      redis.call('ZREM', 'traffic:unscored', id)
    else
      redis.call('ZADD', 'traffic:orphans', 0, id)
    end
  end
end
"""
"""Per arm and prediction: id, field, scores."""

SETTLE = """
local seen, written = 0, 0
for i = 1, #ARGV, 6 do
  local id, version, closing, rows, count, due = unpack(ARGV, i, i + 5)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'version', 'seq', 'ms', 'mature', 'entries')
  if at[1] ~= version or not at[2] then break end
  seen = seen + 1
  redis.call('HINCRBY', key, 'version', 1)
  local revision = 0
  if closing == '1' then
    redis.call('HSET', key, 'revision', 0)
    redis.call('HINCRBY', 'traffic:counters', 'open', -1)
    redis.call('HSET', 'traffic:counters', 'watermark_ms', at[3])
    redis.call('XGROUP', 'SETID', 'traffic:predictions', 'join', at[2] .. '-0')
  elseif rows ~= '' then
    revision = redis.call('HINCRBY', key, 'revision', 1)
  end
  if due == '' then redis.call('ZREM', 'traffic:late', id) else redis.call('ZADD', 'traffic:late', due, id) end
  if rows ~= '' then
    written = written + 1
    local seq = string.format('%d', redis.call('HINCRBY', 'traffic:counters', 'labelled_entries', 1))
    redis.call('HINCRBY', 'traffic:counters', 'labelled_rows', count)
    redis.call('XADD', 'traffic:labelled', seq .. '-0', 'i', id, 'r', revision, 'm', rows)
    redis.call('HSET', key, 'mature', (at[4] or '') .. struct.pack('<I4', #rows) .. rows)
    redis.call('HSET', key, 'entries', (at[5] and at[5] .. ' ' or '') .. seq)
  end
end
return {seen, written}
"""
"""Per prediction, up to the first that has changed since it was read: id, version, 1 to close it, rows or nothing, how
many, when to look again or nothing. Returns predictions settled and entries written."""

CLAMP = """
local key = 'traffic:p:' .. ARGV[1]
local closes = redis.call('HGET', key, 'closes')
if closes and tonumber(closes) > tonumber(ARGV[2]) then redis.call('HSET', key, 'closes', ARGV[2]) end
"""
"""Args: id, when it closes at the latest."""

PLACE = """
for _, group in ipairs(redis.call('XINFO', 'GROUPS', 'traffic:labelled')) do
  if group[2] == ARGV[1] then
    for i = 1, #group, 2 do
      if group[i] == 'last-delivered-id' and tonumber(string.match(group[i + 1], '^%d+')) >= tonumber(ARGV[2]) then
        return
      end
    end
    redis.call('XGROUP', 'SETID', 'traffic:labelled', ARGV[1], ARGV[2] .. '-0')
    return
  end
end
redis.call('XGROUP', 'CREATE', 'traffic:labelled', ARGV[1], ARGV[2] .. '-0')
"""
"""Args: reader, seq. A place never goes back."""

RETAIN = (
    _REMOVE
    + """
local result = {0, 0, 0, 0, 0}
for i = 2, #ARGV do
  local at = redis.call('HMGET', 'traffic:p:' .. ARGV[i], 'seq', 'revision', 'entries')
  if not at[1] then
    -- gone already
  elseif not at[2] then
    result[5] = result[5] + 1
  elseif tonumber(string.match(at[3] or '0', '%d+$')) > tonumber(ARGV[1]) then
    result[4] = result[4] + 1
  else
    local fed, labelled = remove(ARGV[i])
    result[1] = result[1] + 1
    result[2] = result[2] + fed
    result[3] = result[3] + labelled
  end
end
return result
"""
)
"""Args: last labelled seq that may go, ids. Returns predictions, feedback entries and labelled entries removed, and
predictions that stay unread and unjoined."""

FORGET = (
    _REMOVE
    + """
for i = 2, #ARGV do
  if ARGV[1] == 'all' or redis.call('HEXISTS', 'traffic:p:' .. ARGV[i], 'seq') == 0 then remove(ARGV[i]) end
end
"""
)
"""Args: `all`, or `waiting` for those alone whose prediction is not written; ids. Removes all that hangs on them."""
