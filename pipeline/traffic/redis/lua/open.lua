-- Opens the log, and makes what is missing of it: in an empty database all, in one that lost a part that part.
-- Arguments: format; number after which a log that is made now counts its predictions and entries, since readers may
-- remember places in one that was here before.
-- Returns the format found or made, or `foreign` if the database holds other keys.
local found = redis.call('GET', 'traffic:format')
local streams = {'traffic:predictions', 'traffic:labelled'}
local ours = redis.call('EXISTS', 'traffic:counters', 'traffic:forgotten', 'traffic:ids', unpack(streams))
if not found and ours == 0 and redis.call('DBSIZE') > 0 then return 'foreign' end
if not found or redis.call('EXISTS', 'traffic:counters') == 0 then
  if not found then redis.call('SET', 'traffic:format', ARGV[1]) end
  local base = tonumber(ARGV[2])
  for _, stream in ipairs(streams) do
    local last = redis.call('EXISTS', stream) == 1 and redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    if last then base = math.max(base, tonumber(string.match(last[1], '^%d+'))) end
  end
  for _, field in ipairs({'predictions', 'labelled_entries', 'begun'}) do
    if tonumber(redis.call('HGET', 'traffic:counters', field) or '0') <= base then
      redis.call('HSET', 'traffic:counters', field, string.format('%d', base))
    end
  end
end
local joined = false
if redis.call('EXISTS', streams[1]) == 1 then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', streams[1])) do joined = joined or group[2] == 'join' end
end
if not joined then redis.call('XGROUP', 'CREATE', streams[1], 'join', '0', 'MKSTREAM') end
if redis.call('EXISTS', streams[2]) == 0 then
  redis.call('XADD', streams[2], '0-1', 'i', '')
  redis.call('XDEL', streams[2], '0-1')
end
return found or ARGV[1]
