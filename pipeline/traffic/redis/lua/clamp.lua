-- Limits the closing time of a prediction.
-- Arguments: id, latest closing time.
local key = 'traffic:p:' .. ARGV[1]
local closes = redis.call('HGET', key, 'closes')
if closes and tonumber(closes) > tonumber(ARGV[2]) then redis.call('HSET', key, 'closes', ARGV[2]) end
