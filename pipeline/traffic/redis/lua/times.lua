-- Sets the times of open predictions.
-- Arguments per prediction: id, version, time when it was made, time when it closes. One that has changed since it was read
-- is left alone.
for i = 1, #ARGV, 4 do
  local id, version, made, closes = unpack(ARGV, i, i + 3)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'version', 'revision')
  if at[1] == version and not at[2] then
    redis.call('HSET', key, 'ms', made, 'closes', closes)
    redis.call('HINCRBY', key, 'version', 1)
  end
end
