-- Writes predictions.
-- Arguments per prediction: id, version, n, ms, closes, routing hash, endpoint, record; and of its parked feedback:
-- changes, number of entries, parts refused.
-- Returns the ids of predictions that have changed since they were read.
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
