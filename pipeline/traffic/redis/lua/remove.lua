-- remove(id): deletes a prediction with all that belongs to it.
-- Returns how many feedback entries and how many labelled entries it had.
local function remove(id)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'seq', 'revision', 'fed', 'entries', 'waiting', 'request')
  local labelled = 0
  for seq in string.gmatch(at[4] or '', '%d+') do
    labelled = labelled + redis.call('XDEL', 'traffic:labelled', seq .. '-0')
  end
  if at[1] then
    redis.call('XDEL', 'traffic:predictions', at[1] .. '-0')
    if not at[2] then redis.call('HINCRBY', 'traffic:counters', 'open', -1) end
  end
  if at[5] then redis.call('HINCRBY', 'traffic:counters', 'parked', -at[5]) end
  if at[6] then redis.call('ZREM', 'traffic:r:' .. at[6], id) end
  redis.call('DEL', key)
  for _, set in ipairs({'ids', 'unscored', 'late', 'parked', 'orphans', 'waiting'}) do redis.call('ZREM', 'traffic:' .. set, id) end
  return tonumber(at[3] or '0'), labelled
end
