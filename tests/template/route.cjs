// Loaded into the E2B CLI 1.x before it starts: it knows no E2B_API_URL, so that what it asks of E2B's API is asked of
// the stand-in here. Anything that would go elsewhere fails.
const real = globalThis.fetch
const api = 'https://api.e2b.app'

globalThis.fetch = (input, init) => {
  const request = new Request(input, init)
  if (!request.url.startsWith(api + '/')) throw new Error(`not for the stand-in: ${request.url}`)
  const url = process.env.STAND_IN_URL + request.url.slice(api.length)
  return real(new Request(url, { ...request, method: request.method, headers: request.headers, body: request.body, duplex: 'half' }))
}
