-- Adds feedback to predictions.
-- Arguments per prediction: id, version, `changes` or `parked`, bytes to append there, time when it closes now, number of
-- entries.
-- Returns the ids of predictions that have changed since they were read.
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
