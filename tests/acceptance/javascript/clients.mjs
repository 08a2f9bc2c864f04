// Asks the endpoint at BASE_URL as JavaScript programs do, and prints what came back as JSON.
import OpenAI from 'openai'
import { createGroq } from '@ai-sdk/groq'
import { createOpenAI } from '@ai-sdk/openai'
import { generateObject, generateText, jsonSchema, streamText, tool } from 'ai'

const baseURL = process.env.BASE_URL
const apiKey = process.env.API_KEY
const messages = [{ role: 'user', content: 'YES or NO?' }]

async function openai() {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 })
  const whole = await client.chat.completions.create({ model: 'agent', messages })
  const parts = []
  const stream = await client.chat.completions.create({
    model: 'agent', messages, stream: true, stream_options: { include_usage: true },
  })
  let usage = null
  for await (const chunk of stream) {
    parts.push(chunk.choices[0]?.delta?.content ?? '')
    usage = chunk.usage ?? usage
  }
  const text = await client.completions.create({ model: 'agent', prompt: 'YES or' })
  const models = []
  for await (const model of client.models.list()) models.push(model.id)
  const refused = await client.chat.completions
    .create({ model: 'agent', messages, functions: [{ name: 'buy' }] })
    .catch((error) => ({ status: error.status, param: error.param }))
  const stranger = await new OpenAI({ baseURL, apiKey: 'none' }).models
    .list()
    .catch((error) => ({ status: error.status, code: error.code }))
  return {
    content: whole.choices[0].message.content, model: whole.model, streamed: parts.join(''),
    total: usage.total_tokens, text: text.choices[0].text, models, refused, stranger,
  }
}

// As the app's agents ask: Groq's provider with another address.
async function app() {
  const groq = createGroq({ apiKey, baseURL })
  const answer = await generateText({
    model: groq.languageModel('agent'), system: 'You trade.', prompt: 'YES or NO?',
    temperature: 0.7, maxOutputTokens: 8192, frequencyPenalty: 0.7, presencePenalty: 0.7,
    stopSequences: ['END'], maxRetries: 2,
  })
  const streamed = streamText({ model: groq.languageModel('agent'), prompt: 'YES or NO?' })
  const parts = []
  for await (const part of streamed.textStream) parts.push(part)
  const { object } = await generateObject({
    model: groq.languageModel('json'), output: 'no-schema', prompt: 'A JSON object.',
  })
  const schema = jsonSchema({ type: 'object', properties: { side: { type: 'string' } } })
  const refused = await generateText({
    model: groq.languageModel('agent@0'), prompt: 'Buy?', maxRetries: 0,
    tools: { buy: tool({ description: 'Buy', inputSchema: schema }) },
  }).catch((error) => ({ status: error.statusCode, message: error.message }))
  return {
    content: answer.text, total: answer.usage.totalTokens, reason: answer.finishReason,
    streamed: parts.join(''), object, refused,
  }
}

async function vercelOpenai() {
  const provider = createOpenAI({ apiKey, baseURL })
  const answer = await generateText({
    model: provider.chat('agent'), prompt: 'YES or NO?', maxOutputTokens: 1000, temperature: 0.7,
  })
  return { content: answer.text, model: answer.response.modelId }
}

console.log(JSON.stringify({
  openai: await openai(), app: await app(), vercelOpenai: await vercelOpenai(),
}))
