-- Stores the scores of other arms.
-- Arguments per arm and prediction: id, field, scores.
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
