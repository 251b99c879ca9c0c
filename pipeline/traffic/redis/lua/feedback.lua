-- Adds feedback to predictions.
-- Arguments per prediction: id, version, `changes` or `parked`, bytes to append there, time when it closes now, number of
-- entries.
-- Returns the ids of predictions that have changed since they were read.
local changed = {}
for i = 1, #ARGV, 6 do
  local id, version, field, bytes, closes, entries = unpack(ARGV, i, i + 5)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'version', 'seq', 'revision', field)
  if (at[1] or '0') ~= version or (field == 'changes') ~= (at[2] ~= false) then
    changed[#changed + 1] = id
  else
    redis.call('HINCRBY', key, 'version', 1)
    redis.call('HSET', key, field, (at[4] or '') .. bytes)
    redis.call('HINCRBY', 'traffic:counters', 'feedback', entries)
    if field == 'parked' then
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
