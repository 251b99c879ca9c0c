-- Writes predictions.
-- Arguments per prediction: id, version, n, ms, closes, routing hash, endpoint, record; of its parked feedback: changes,
-- number of entries, parts refused; key of its request id or empty, and the version of ~KEY, under which feedback may wait, too.
-- Returns the ids of predictions that have changed since they were read.
local changed = {}
for i = 1, #ARGV, 13 do
  local id, version, n, ms, closes, routing, endpoint, record, changes, fed, refused, request, seen = unpack(ARGV, i, i + 12)
  local waiting = 'traffic:p:~' .. request
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'seq', 'version', 'waiting', 'scores')
  local forgotten = redis.call('HGET', 'traffic:forgotten', routing)
  if at[1] then
    -- written before
  elseif (at[2] or '0') ~= version or (request ~= '' and (redis.call('HGET', waiting, 'version') or '0') ~= seen) then
    changed[#changed + 1] = id
  elseif forgotten and tonumber(ms) <= tonumber(forgotten) then
    remove(id)
    if request ~= '' then remove('~' .. request) end
  else
    local seq = string.format('%d', redis.call('HINCRBY', 'traffic:counters', 'predictions', 1))
    redis.call('HINCRBY', 'traffic:counters', 'open', 1)
    redis.call('XADD', 'traffic:predictions', seq .. '-0', 'i', id, 'e', endpoint, 'r', routing)
    redis.call('ZADD', 'traffic:ids', 0, id)
    redis.call('HSET', key, 'seq', seq, 'n', n, 'ms', ms, 'closes', closes, 'endpoint', endpoint, 'record', record)
    redis.call('HINCRBY', key, 'version', 1)
    if at[4] then redis.call('ZREM', 'traffic:orphans', id) else redis.call('ZADD', 'traffic:unscored', seq, id) end
    local early = at[3]
    if request ~= '' then
      redis.call('HSET', key, 'request', request)
      redis.call('ZADD', 'traffic:r:' .. request, 0, id)
      if seen ~= '0' then
        early = early or redis.call('HGET', waiting, 'waiting')
        remove('~' .. request)
      end
    end
    if at[3] then
      redis.call('HINCRBY', 'traffic:counters', 'parked', -at[3])
      redis.call('HDEL', key, 'parked', 'waiting')
      redis.call('ZREM', 'traffic:parked', id)
    end
    if early then
      redis.call('HINCRBY', 'traffic:counters', 'parked_refused', refused)
      redis.call('HSET', key, 'changes', changes, 'fed', fed)
    end
  end
end
return changed
