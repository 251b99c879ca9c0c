-- Adds feedback to predictions, or to names that wait for one by the key of its request id (~KEY).
-- Arguments per prediction: id or ~KEY, version, `changes` or `parked`, bytes to append there, time when it closes now (of
-- ~KEY: when it came), number of entries.
-- Returns the ids of predictions that have changed since they were read.
local changed = {}
for i = 1, #ARGV, 6 do
  local id, version, field, bytes, closes, entries = unpack(ARGV, i, i + 5)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'version', 'seq', 'revision', field)
  local waits = string.sub(id, 1, 1) == '~'
  if (at[1] or '0') ~= version or (field == 'changes') ~= (at[2] ~= false)
    or (waits and redis.call('EXISTS', 'traffic:r:' .. string.sub(id, 2)) == 1) then
    changed[#changed + 1] = id
  else
    redis.call('HINCRBY', key, 'version', 1)
    redis.call('HSET', key, field, (at[4] or '') .. bytes)
    redis.call('HINCRBY', 'traffic:counters', 'feedback', entries)
    if field == 'parked' then
      redis.call('HINCRBY', key, 'waiting', entries)
      redis.call('HINCRBY', 'traffic:counters', 'parked', entries)
      if waits then redis.call('ZADD', 'traffic:waiting', 'NX', closes, id) else redis.call('ZADD', 'traffic:parked', 0, id) end
    else
      redis.call('HINCRBY', key, 'fed', entries)
      if at[3] then redis.call('ZADD', 'traffic:late', 0, id) else redis.call('HSET', key, 'closes', closes) end
    end
  end
end
return changed
